# SPDX-License-Identifier: Apache-2.0
"""The endpoint as clients see it: OpenAI's own library, and requests that it would not send."""

import concurrent.futures
import http.client
import json
import threading
import time
import tracemalloc
import urllib.parse

import numpy as np
import openai
import pytest

from auditdm_jax.serving import app
from auditdm_jax.serving.batcher import Sharing
from auditdm_jax.serving.engine import Engine
from auditdm_jax.serving.intake import Intake, RequestLimits
from auditdm_jax.text import prompts
from auditdm_jax.vlm import Completion
from tests.serving import tiny
from tests.serving.tiny import IMAGES, QUESTIONS, user

MODELS = {"gemma3": prompts.GEMMA3, "paligemma": prompts.PALIGEMMA}


def client(address, key="none", **how):
  return openai.OpenAI(base_url=f"{address}/v1", api_key=key, **{"max_retries": 0} | how)


@pytest.fixture(scope="module", params=list(MODELS))
def pair(request):
  """A model, and a client of it."""
  vlm = tiny.make(MODELS[request.param])
  with tiny.served(vlm) as address:
    yield vlm, client(address)


@pytest.fixture(scope="module")
def gemma3():
  vlm = tiny.make()
  with tiny.served(vlm) as address:
    yield vlm, client(address), address


def create(asked, message, **how):
  messages = message if isinstance(message, list) else [message]
  return asked.chat.completions.create(model="tiny", messages=messages, **how)


def text(answer):
  return answer.choices[0].message.content


def test_answers_are_those_of_answer(pair):
  vlm, asked = pair
  for q, images in zip(QUESTIONS, ([0], [], [1, 2], [2], [1], [0], [], [2])):
    got = create(asked, user(q, *(IMAGES[i] for i in images)), temperature=0)
    want = vlm.answer([[IMAGES[i] for i in images]], [q], max_new_tokens=8)
    assert [text(got)] == want
    ids = prompts.render(tiny.TOKENIZER, vlm.template, q, 4, images=len(images))
    said, usage = got.choices[0], got.usage
    assert usage.prompt_tokens == len(ids)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert (said.finish_reason == "length") == (usage.completion_tokens == 8)
    assert (got.object, said.index, said.message.role) == ("chat.completion", 0, "assistant")


def test_sampling_by_seed(pair):
  vlm, asked = pair
  how = {"temperature": 1.5, "max_tokens": 5}
  got = {}
  for seed in (3, 4, -1):
    got[seed] = create(asked, user(QUESTIONS[1], IMAGES[0]), seed=seed, **how)
    want = vlm.answer([IMAGES[0]], [QUESTIONS[1]], max_new_tokens=5, temperature=1.5, seed=seed)
    assert [text(got[seed])] == want
    assert got[seed].seed == seed
  # Without a seed, another one each time, which is named.
  several = [create(asked, user(QUESTIONS[1], IMAGES[0]), **how) for _ in range(4)]
  assert len({answer.seed for answer in several}) == 4
  again = create(asked, user(QUESTIONS[1], IMAGES[0]), seed=several[0].seed, **how)
  assert text(again) == text(several[0])
  greedy = create(asked, user(QUESTIONS[1], IMAGES[0]))
  assert "seed" not in (greedy.model_extra or {})


def test_clients_at_the_same_time_get_what_each_gets_alone(pair):
  vlm, asked = pair
  jobs = [
    (user(q, *(IMAGES[i] for i in images)), how)
    for k, q in enumerate([q for q in QUESTIONS if len(q.split()) < 7] * 2)
    for images in [[], [k % 3]]
    for how in [{"max_tokens": 1 + k % 8, "temperature": 0.7 * (k % 2), "seed": k}]
  ]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    together = list(pool.map(lambda job: text(create(asked, job[0], **job[1])), jobs))
  alone = [text(create(asked, message, **how)) for message, how in jobs]
  assert together == alone and len(set(together)) > 5


def test_eight_clients_share_calls():
  vlm, sizes = tiny.make(), []
  engine = Engine(vlm, cache_bytes=0)

  def run(asks):
    sizes.append(len(asks))
    time.sleep(0.1)
    return engine.run(asks)

  with tiny.served(vlm, run=run) as address:
    asked = client(address)

    def ask(q):
      return [text(create(asked, user(q))) for _ in range(4)]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
      got = list(pool.map(ask, QUESTIONS))
  assert got == [[w] * 4 for w in vlm.answer(None, QUESTIONS, max_new_tokens=8)]
  assert sum(sizes) == 32 and len(sizes) <= 10, sizes


@pytest.mark.parametrize("usage", [False, True])
def test_a_stream_is_the_answer(pair, usage):
  _, asked = pair
  whole = create(asked, user(QUESTIONS[0], IMAGES[1]))
  options = {"stream_options": {"include_usage": True}} if usage else {}
  chunks = list(create(asked, user(QUESTIONS[0], IMAGES[1]), stream=True, **options))
  assert len({chunk.id for chunk in chunks}) == 1
  if usage:
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    chunks = chunks[:-1]
  assert all(chunk.usage is None for chunk in chunks)
  deltas = [chunk.choices[0].delta for chunk in chunks]
  assert deltas[0].role == "assistant"
  assert "".join(delta.content or "" for delta in deltas) == text(whole)
  reasons = [chunk.choices[0].finish_reason for chunk in chunks]
  assert reasons == [None] * (len(chunks) - 1) + [whole.choices[0].finish_reason]


def test_what_ends_an_answer(gemma3):
  _, asked, _ = gemma3
  whole = create(asked, user(QUESTIONS[3], IMAGES[0]))
  words = text(whole).split()
  assert whole.choices[0].finish_reason == "length" and len(words) == 8
  for how in ({"max_tokens": 3}, {"max_completion_tokens": 3, "max_tokens": 5}):
    cut = create(asked, user(QUESTIONS[3], IMAGES[0]), **how)
    assert (text(cut), cut.usage.completion_tokens) == (" ".join(words[:3]), 3)
  # More than the server's limit is the limit.
  assert text(create(asked, user(QUESTIONS[3], IMAGES[0]), max_tokens=10_000)) == text(whole)
  stopped = create(asked, user(QUESTIONS[3], IMAGES[0]), stop=[f"{words[0]} {words[1]}"])
  said = stopped.choices[0]
  assert (said.message.content, said.finish_reason) == ("", "stop")
  assert stopped.usage.completion_tokens == 2


def test_a_conversation(gemma3):
  vlm, asked, _ = gemma3
  plain = create(asked, user("what is red"))
  turns = [
    {"role": "system", "content": "red cup"},
    user("what is red", IMAGES[0]),
    {"role": "assistant", "content": "a cup"},
    user("where is the cup"),
  ]
  talk = create(asked, turns)
  assert talk.usage.prompt_tokens > plain.usage.prompt_tokens + 4 + 3 + 4
  with pytest.raises(openai.BadRequestError, match="take turns"):
    create(asked, [user("a"), user("b")])


def test_paligemma_takes_one_message():
  with tiny.served(tiny.make(prompts.PALIGEMMA)) as address:
    asked = client(address)
    with pytest.raises(openai.BadRequestError, match="was not taught turns"):
      create(asked, [{"role": "system", "content": "red"}, user("what")])


def test_models_and_health(gemma3):
  _, asked, address = gemma3
  assert [m.id for m in asked.models.list()] == ["tiny"]
  assert asked.models.retrieve("tiny").owned_by == "auditdm_jax"
  with pytest.raises(openai.NotFoundError, match="has the model 'tiny'"):
    asked.models.retrieve("other/one")
  with pytest.raises(openai.NotFoundError, match="no model 'tyni'.*did you mean 'tiny'") as error:
    asked.chat.completions.create(model="tyni", messages=[user("what")])
  assert (error.value.code, error.value.param) == ("model_not_found", "model")
  status, _, body = send(address, "GET", "/health")
  assert (status, body) == (200, {"status": "ok", "model": "tiny", "queued": 0, "running": 0})


def send(address, method, path, body=None, **headers):
  """Returns the status, the headers and the JSON of a reply."""
  parts = urllib.parse.urlsplit(address)
  connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)
  connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
  reply = connection.getresponse()
  return reply.status, dict(reply.getheaders()), json.loads(reply.read())


CHAT = "/v1/chat/completions"
JSON = {"content_type": "application/json"}


@pytest.mark.parametrize(
  ("method", "path", "body", "headers", "status"),
  [
    ("POST", CHAT, "{}", {}, 415),
    ("POST", CHAT, "{}", {"content_type": "text/plain"}, 415),
    ("POST", CHAT, "{", JSON, 400),
    ("POST", CHAT, '{"model": "tiny", "messages": []}', JSON, 400),
    ("GET", CHAT, None, {}, 405),
    ("GET", "/", None, {}, 404),
    ("GET", "/v1/models/..%2f..%2fetc", None, {}, 404),
  ],
)
def test_errors_have_openais_form(gemma3, method, path, body, headers, status):
  got, _, said = send(gemma3[2], method, path, body, **headers)
  assert got == status
  assert said.keys() == {"error"} and said["error"].keys() == {"message", "type", "param", "code"}
  assert said["error"]["type"] == "invalid_request_error" and said["error"]["message"]


def test_a_charset_is_no_other_type(gemma3):
  body = json.dumps({"model": "tiny", "messages": [user("what")]})
  status, _, _ = send(gemma3[2], "POST", CHAT, body, content_type="Application/JSON; charset=utf-8")
  assert status == 200


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ([{"type": "image_url", "image_url": {"url": "http://10.0.0.1/a.png"}}], "fetches nothing"),
    ([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}], "not a data URL"),
    ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}], "no image"),
    (user("what", *IMAGES[:1] * 9)["content"], "9 images, at most 8"),
    ("what " * 200, "200 tokens|2.. tokens"),
    ("x" * 100_000, "100000 characters"),
  ],
)
def test_requests_that_cannot_be_answered(content, message):
  vlm = tiny.make()
  with tiny.served(vlm, limits=RequestLimits(max_tokens=8, max_prompt_tokens=100)) as address:
    with pytest.raises(openai.BadRequestError, match=message) as error:
      create(client(address), {"role": "user", "content": content})
  assert error.value.param == "messages"


def test_a_key():
  with tiny.served(tiny.make(), key="open sesame") as address:
    assert text(create(client(address, "open sesame"), user("what")))
    for key in ("open", "open sesame2"):
      for call in (lambda c: create(c, user("what")), lambda c: c.models.list()):
        with pytest.raises(openai.AuthenticationError) as error:
          call(client(address, key))
        assert error.value.code == "invalid_api_key"
    assert send(address, "GET", "/v1/models", authorization="Bearer \xe9")[0] == 401
    status, headers, _ = send(address, "GET", "/v1/models")
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert send(address, "GET", "/health")[0] == 200


def test_bodies_are_bounded(monkeypatch):
  limits = RequestLimits(max_tokens=8, max_body=20_000)
  with tiny.served(tiny.make(), limits=limits) as address:
    with pytest.raises(openai.APIStatusError) as error:
      create(client(address), user("x" * 30_000))
    assert (error.value.status_code, error.value.code) == (413, "body_too_large")
    # Of a length that is not said beforehand.
    chunks = iter([b" " * 9000] * 3)
    status, _, said = send(address, "POST", CHAT, chunks, **JSON)
    assert (status, said["error"]["code"]) == (413, "body_too_large")
    monkeypatch.setattr(app, "_BODY_S", 0.2)
    status, _, said = send(address, "POST", CHAT, b"{}", content_length="100", **JSON)
    assert (status, said["error"]["code"]) == (408, "timeout")
    monkeypatch.setattr(app, "_HELD_BODIES", 0)
    status, headers, _ = send(address, "POST", CHAT, b"{}", **JSON)
    assert (status, headers["retry-after"]) == (429, "1")
    monkeypatch.undo()
    assert text(create(client(address), user("what")))


class Held:
  """Answers once it is let go."""

  def __init__(self):
    self.asked, self.go = [], threading.Event()

  def __call__(self, asks):
    self.asked.append([a.ids for a in asks])
    self.go.wait(20)
    return [Completion((tiny.TOKENIZER.id("red"),), truncated=False) for _ in asks]


def wait_for(condition):
  until = time.monotonic() + 10
  while not condition():
    assert time.monotonic() < until
    time.sleep(0.01)


def queued(address):
  return send(address, "GET", "/health")[2]["queued"]


def test_requests_that_wait_hold_no_bodies():
  held, waiting = Held(), 12
  image = np.random.default_rng(3).integers(0, 256, (700, 500, 3), dtype=np.uint8)
  body = json.dumps({"model": "tiny", "messages": [user("what", image)]}).encode()
  with tiny.served(tiny.make(), run=held) as address:
    with concurrent.futures.ThreadPoolExecutor(waiting) as pool:
      tracemalloc.start()
      replies = [pool.submit(send, address, "POST", CHAT, body, **JSON) for _ in range(waiting)]
      wait_for(lambda: sum(map(len, held.asked)) + queued(address) == waiting)
      used = tracemalloc.get_traced_memory()[0]
      tracemalloc.stop()
      held.go.set()
      assert [r.result(20)[0] for r in replies] == [200] * waiting
  assert used < waiting / 4 * len(body)


def test_a_full_queue_is_429_and_the_client_comes_again():
  held = Held()
  with tiny.served(tiny.make(), run=held, batching=Sharing(max_queue=1)) as address:
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
      first = pool.submit(create, client(address), user("a"))
      wait_for(lambda: held.asked)
      second = pool.submit(create, client(address), user("b"))
      wait_for(lambda: queued(address) == 1)
      with pytest.raises(openai.RateLimitError) as error:
        create(client(address), user("c"))
      assert int(error.value.response.headers["retry-after"]) >= 1
      patient = pool.submit(create, client(address, max_retries=3), user("d"))
      held.go.set()
      assert [text(f.result(20)) for f in (first, second, patient)] == ["red"] * 3


def test_a_client_that_leaves_leaves_the_queue():
  held = Held()
  with tiny.served(tiny.make(), run=held) as address:
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
      first = pool.submit(create, client(address), user("a"))
      wait_for(lambda: held.asked)
      with pytest.raises(openai.APITimeoutError):
        create(client(address, timeout=0.3), user("b"))
      wait_for(lambda: queued(address) == 0)
      held.go.set()
      assert text(first.result(20)) == "red"
  assert len(held.asked) == 1


def test_what_takes_too_long_is_504_and_a_failure_500():
  held = Held()
  with tiny.served(tiny.make(), run=held, batching=Sharing(timeout_s=0.2)) as address:
    with pytest.raises(openai.InternalServerError) as error:
      create(client(address), user("a"))
    assert (error.value.status_code, error.value.code) == (504, "timeout")
    held.go.set()
  failing = lambda asks: [ValueError("secret") for _ in asks]  # noqa: E731
  with tiny.served(tiny.make(), run=failing) as address:
    with pytest.raises(openai.InternalServerError) as error:
      create(client(address), user("a"), stream=True)
    assert (error.value.status_code, error.value.type) == (500, "server_error")
    assert "secret" not in str(error.value)


def test_reading_and_answering_have_one_deadline(monkeypatch):
  """Each of them alone would be in time."""
  share, read = 0.6, Intake.read

  def slowly(intake, body):
    time.sleep(share)
    return read(intake, body)

  def run(asks):
    time.sleep(share)
    return [Completion((tiny.TOKENIZER.id("red"),), truncated=False) for _ in asks]

  monkeypatch.setattr(Intake, "read", slowly)
  with tiny.served(tiny.make(), run=run, batching=Sharing(timeout_s=1.5 * share)) as address:
    with pytest.raises(openai.InternalServerError, match="no answer within") as error:
      create(client(address), user("a"))
  assert (error.value.status_code, error.value.code) == (504, "timeout")


def test_what_cannot_be_read_in_time_is_given_up(monkeypatch):
  """A thread that reads cannot be stopped: until it ends, it has the body and others wait."""
  go, begun, read = threading.Event(), [], Intake.read
  red = Completion((tiny.TOKENIZER.id("red"),), truncated=False)
  run = lambda asks: [red for _ in asks]  # noqa: E731

  def stuck(intake, body):
    begun.append(len(body))
    go.wait(20)
    return read(intake, body)

  monkeypatch.setattr(Intake, "read", stuck)
  monkeypatch.setattr(app, "_HELD_BODIES", 3)
  body = json.dumps({"model": "tiny", "messages": [user("what")]}).encode()
  limits, batching = RequestLimits(max_tokens=8, max_body=len(body)), Sharing(timeout_s=1.0)
  with tiny.served(tiny.make(), run=run, limits=limits, batching=batching) as address:
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
      ask = lambda _=None: send(address, "POST", CHAT, body, **JSON)  # noqa: E731
      assert [status for status, _, _ in pool.map(ask, range(3))] == [504] * 3
    assert ask()[0] == 429 and len(begun) == 2
    go.set()
    wait_for(lambda: ask()[0] == 200)
  assert len(begun) == 3  # The one that had waited for a thread was passed over.


def test_a_server_that_broke_says_so():
  def broken(asks):
    raise SystemError("bug")

  with tiny.served(tiny.make(), run=broken) as address:
    for _ in range(2):
      with pytest.raises(openai.InternalServerError) as error:
        create(client(address), user("a"))
      assert error.value.status_code == 503
    assert send(address, "GET", "/health")[0] == 503


def test_a_text_model():
  vlm = tiny.make(sees=False)
  with tiny.served(vlm) as address:
    assert (
      text(create(client(address), user("what is")))
      == (vlm.answer(None, ["what is"], max_new_tokens=8)[0])
    )
    with pytest.raises(openai.BadRequestError, match="sees no images"):
      create(client(address), user("what is", np.zeros((8, 8, 3), np.uint8)))
