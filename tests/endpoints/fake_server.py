# SPDX-License-Identifier: Apache-2.0
"""An endpoint that answers as told: right, late, wrongly, in HTML, not at all; and can be killed.

How a question is answered is the word before its first colon, `ROUTES`; other questions get an
answer that depends on picture and question. Raw sockets, so that every misbehaviour is possible.

  python -m tests.endpoints.fake_server --latency=0.05   prints its port, serves until killed
"""

import argparse
import asyncio
import base64
from collections import Counter
from collections.abc import Callable
import dataclasses
import email.utils
import hashlib
import io
import json
import re
import threading
import time
from typing import Any, Literal

import numpy as np
from PIL import Image

Mode = Literal["up", "500", "html", "hang", "429"]


@dataclasses.dataclass(frozen=True)
class Answer:
  """What goes back.

  Attributes:
    cut: break the connection after so many bytes of the body.
  """

  status: int = 200
  body: bytes = b""
  headers: tuple[tuple[str, str], ...] = (("Content-Type", "application/json"),)
  delay_s: float = 0.0
  cut: int | None = None


@dataclasses.dataclass(frozen=True)
class Asked:
  """One request as it came in.

  Attributes:
    text: of the user's turn.
    headers: by their names in lower case.
    picture: the decoded file; None without one.
  """

  text: str
  picture: np.ndarray | None
  url: str
  body: dict[str, Any]
  headers: dict[str, str]

  @property
  def question(self) -> tuple[str, str]:
    """Picture and text, to count with."""
    return hashlib.sha256(self.url.encode()).hexdigest()[:12], self.text


def completion(text: str | None, *, finish: str = "stop", usage: Any = None, **message) -> Answer:
  """A chat completion."""
  content = {"role": "assistant", "content": text, **message}
  body = {
    "id": "x",
    "object": "chat.completion",
    "created": int(time.time()),
    "model": "fake-1",
    "system_fingerprint": "b1",
    "usage": usage,
    "choices": [{"index": 0, "message": content, "finish_reason": finish}],
  }
  return Answer(body=json.dumps(body).encode())


def error(status: int, message: str, *headers: tuple[str, str], code: str | None = None) -> Answer:
  body = json.dumps({"error": {"message": message, "code": code}}).encode()
  return Answer(status, body, (("Content-Type", "application/json"), *headers))


def _html() -> Answer:
  return Answer(
    body=b"<html><body>Please log in</body></html>", headers=(("Content-Type", "text/html"),)
  )


def _date(seconds: float, skew_s: float = 0.0) -> tuple[tuple[str, str], ...]:
  """Retry-After as a date, and the Date of a server whose clock is wrong by skew_s."""
  now = time.time() + skew_s
  stamp = email.utils.formatdate
  return ("Retry-After", stamp(now + seconds, usegmt=True)), ("Date", stamp(now, usegmt=True))


_HTML, _CUT = _html(), dataclasses.replace(completion("whole"), cut=20)
_EVENTS = (("Content-Type", "text/event-stream"),)
# By the word before the colon: answers to the first, the second, … request; the last one stays.
# None = the right answer.
ROUTES: dict[str, list[Answer | None]] = {
  "always500": [Answer(500, b"Internal Server Error", (("Content-Type", "text/plain"),))],
  "once500": [error(500, "oops"), None],
  "once503": [error(503, "loading"), None],
  "once429": [error(429, "slow down", ("Retry-After", "1")), None],
  "date429": [error(429, "slow down", *_date(1.0, skew_s=3600.0)), None],
  "bare429": [error(429, "slow down"), error(429, "slow down"), None],
  "later429": [error(429, "tomorrow", ("Retry-After", "86400"))],
  "quota": [error(429, "no money", code="insufficient_quota")],
  "html": [_HTML],
  "oncehtml": [_HTML, None],
  "garbage": [Answer(body=b'{"choices": [{"mess')],
  "binary": [Answer(body=bytes(range(256)))],
  "list": [Answer(body=b"[1, 2, 3]")],
  "deep": [Answer(body=b"[" * 100_000)],
  "empty": [Answer(body=b"")],
  "events": [Answer(body=b"data: {}\n\ndata: [DONE]\n\n", headers=_EVENTS)],
  "noevents": [Answer(body=b"", headers=_EVENTS)],
  "null": [Answer(body=b'{"choices": null}')],
  "nochoice": [Answer(body=b'{"choices": []}')],
  "nomessage": [Answer(body=b'{"choices": [{"finish_reason": "stop"}]}')],
  "notext": [completion(None)],
  "tool": [completion(None, finish="tool_calls")],
  "thought": [completion(None, finish="length", reasoning_content="hm")],
  "error200": [Answer(body=b'{"error": {"message": "backend", "code": 502}}')],
  "refusal": [completion(None, refusal="I cannot help with that.")],
  "filter": [completion("", finish="content_filter")],
  "azure": [error(400, "policy", code="content_filter")],
  "forbidden": [error(403, "flagged")],
  "bad": [error(400, "Failed to load image")],
  "unknown": [error(422, "extra fields")],
  "once404": [error(404, "no such model")],
  "cut": [_CUT],
  "oncecut": [_CUT, None],
  "drop": [Answer(cut=0)],
  "slow": [Answer(delay_s=60.0)],
  "onceslow": [Answer(delay_s=60.0), None],
  "huge": [completion("x" * (6 << 20))],
  "long": [completion("x" * (1 << 17))],
  "gzip": [Answer(body=b"\x1f\x8b", headers=(("Content-Encoding", "gzip"),))],
  "parts": [completion([{"type": "text", "text": "in "}, {"type": "text", "text": "parts"}])],  # type: ignore[arg-type]
  "surrogate": [Answer(body=b'{"choices": [{"message": {"content": "a\\ud800b"}}]}')],
  "zero": [completion("free", usage={"prompt_tokens": 0, "completion_tokens": 0})],
  "length": [completion("cut off", finish="length")],
  "redirect": [Answer(307, b"", (("Location", "http://127.0.0.1:1/v1/chat/completions"),))],
}


class FakeServer:
  """Serves in a thread of its own.

  Attributes:
    mode: how everything is answered; "up" = as the questions say.
    blind: pictures are ignored; "text" = the data URL is read as text.
    samples: answers differ from call to call, whatever temperature and seed.
    usage: whether tokens are told.
    latency_s: of every answer.
    key: what Authorization must bear; "" = anything.
    echo: errors and answers quote the whole request with its headers.
    asked: all requests for chat completions.
    served: questions to which a whole answer with status 200 was sent.
    most: requests under way at the same time.
    limit: more than so many at the same time get 429; 0 = no bound.
  """

  def __init__(self, port: int = 0, *, latency_s: float = 0.0):
    self.mode: Mode = "up"
    self.blind: bool | Literal["text"] = False
    self.samples, self.usage, self.echo = False, True, False
    self.latency_s, self.key, self.limit = latency_s, "", 0
    self.respond: Callable[[Asked], Answer] | None = None
    self.version = "1.0"
    self.models: list[dict[str, Any]] = [{"id": "fake", "owned_by": "tests"}]
    self.asked: list[Asked] = []
    self.served: Counter[tuple[str, str]] = Counter()
    self.most = self._now = 0
    self.port = port
    self._turns: Counter[str] = Counter()
    self._writers: set[asyncio.StreamWriter] = set()
    self._loop = asyncio.new_event_loop()
    self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
    self._thread.start()
    self._server: asyncio.Server | None = None

  @property
  def url(self) -> str:
    return f"http://127.0.0.1:{self.port}/v1"

  def __enter__(self) -> "FakeServer":
    self.start()
    return self

  def __exit__(self, *_: object) -> None:
    self.kill()

  def start(self) -> None:
    """Listens, on the port it had before."""

    async def start():
      self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=1 << 26)
      self.port = self._server.sockets[0].getsockname()[1]

    asyncio.run_coroutine_threadsafe(start(), self._loop).result(10)

  def kill(self) -> None:
    """Breaks all connections and listens no more."""

    async def kill():
      if self._server is not None:
        self._server.close()
      for writer in list(self._writers):
        writer.transport.abort()

    asyncio.run_coroutine_threadsafe(kill(), self._loop).result(10)

  async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    self._writers.add(writer)
    try:
      while True:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.split(": ", 1) for line in head[1:] if line)
        headers = {name.lower(): value for name, value in pairs}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self._now += 1
        self.most = max(self.most, self._now)
        try:
          if not await self._reply(head[0].split()[1], body, headers, writer):
            break
        finally:
          self._now -= 1
    except (asyncio.IncompleteReadError, ConnectionError):
      pass
    finally:
      self._writers.discard(writer)
      writer.close()

  async def _reply(
    self, path: str, body: bytes, headers: dict[str, str], writer: asyncio.StreamWriter
  ) -> bool:
    """Answers one request; returns whether the connection stays."""
    asked = None
    if path == "/v1/chat/completions":
      asked = _read(body, headers)
      self.asked.append(asked)
      answer = self._chat(asked)
    elif path == "/v1/models":
      answer = Answer(body=json.dumps({"object": "list", "data": self.models}).encode())
    elif path == "/version":
      answer = Answer(body=json.dumps({"version": self.version}).encode())
    else:
      answer = error(404, "no such path")
    await asyncio.sleep(answer.delay_s + self.latency_s)
    whole = answer.cut is None
    lines = [f"HTTP/1.1 {answer.status} X", f"Content-Length: {len(answer.body)}", "Server: fake/1"]
    lines += [f"{name}: {value}" for name, value in answer.headers]
    # As uvicorn does: after a 500 the connection is closed.
    stays = whole and answer.status != 500
    lines += [] if stays else ["Connection: close"]
    if answer.cut != 0:
      writer.write("\r\n".join([*lines, "", ""]).encode() + answer.body[: answer.cut])
      await writer.drain()
    if asked is not None and answer.status == 200 and whole:
      self.served[asked.question] += 1
    return stays

  def _chat(self, asked: Asked) -> Answer:
    if self.key and asked.headers.get("authorization") != f"Bearer {self.key}":
      return error(401, f"wrong key {asked.headers.get('authorization') if self.echo else ''}")
    if self.echo:
      quoted = json.dumps(asked.headers)
      return error(400, quoted) if asked.text.startswith("bad:") else completion(quoted)
    if self.mode != "up":
      return {
        "500": ROUTES["always500"][0],
        "html": ROUTES["html"][0],
        "hang": ROUTES["slow"][0],
        "429": error(429, "slow down", ("Retry-After", "1")),
      }[self.mode]
    if self.limit and self._now > self.limit:
      return error(429, "too many", ("Retry-After", "0.2"))
    if self.respond is not None:
      return self.respond(asked)
    route = ROUTES.get(asked.text.partition(":")[0])
    if route is not None:
      turn = self._turns[asked.text]
      self._turns[asked.text] += 1
      answer = route[min(turn, len(route) - 1)]
      if answer is not None:
        return answer
    return self._right(asked)

  def _right(self, asked: Asked) -> Answer:
    picture = None if self.blind else asked.picture
    tokens = len(asked.text.split())
    if self.blind == "text":
      tokens += len(asked.url) // 4
    elif picture is not None:
      tokens += 10
    text = right_answer(picture, asked.text)
    if self.samples:
      text = f"{text} {time.perf_counter_ns()}"
    usage = {"prompt_tokens": tokens, "completion_tokens": len(text.split())}
    return completion(text, usage=usage if self.usage else None)


def right_answer(picture: np.ndarray | None, text: str) -> str:
  """The answer to a question: colours and squares are seen, all else is a hash."""
  digest = hashlib.sha256(text.encode())
  if picture is not None:
    red, _, blue = picture.reshape(-1, 3).mean(0)
    if "color" in text:
      return "red" if red > blue else "blue"
    if "How many white squares" in text:
      return "1" if red > blue else "3"
    digest.update(picture.tobytes())
  elif "color" in text:
    return "I see no picture."
  return digest.hexdigest()[:8]


def _read(body: bytes, headers: dict[str, str]) -> Asked:
  request = json.loads(body)
  content, url = request["messages"][-1]["content"], ""
  if isinstance(content, list):
    (url,) = [p["image_url"]["url"] for p in content if p["type"] == "image_url"]
    (content,) = [p["text"] for p in content if p["type"] == "text"]
  picture = None
  if url:
    match = re.fullmatch(r"data:image/(png|jpeg);base64,(.*)", url)
    assert match, url[:40]
    with Image.open(io.BytesIO(base64.b64decode(match[2])), formats=[match[1].upper()]) as image:
      picture = np.asarray(image.convert("RGB"))
  return Asked(content, picture, url, request, headers)


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--latency", type=float, default=0.0)
  arguments = parser.parse_args()
  with FakeServer(latency_s=arguments.latency) as server:
    print(server.port, flush=True)
    while True:
      time.sleep(60)


if __name__ == "__main__":
  main()
