# SPDX-License-Identifier: Apache-2.0
"""A model behind an endpoint: many questions at once, each asked until it is settled.

  with Endpoint(config, cache=workdir / "endpoints") as endpoint:
    replies = endpoint.answer(images, prompts, max_new_tokens=16)

One question:

  1. cached                  its reply is handed out, nothing is sent
  2. under way elsewhere     another thread asks it now: wait for that
  3. a slot, the gate, the budget; then one try
  4. answered, or refused    its reply is written and handed out
  5. told to come back       wait as told; the time is bounded, the tries are not
  6. failed otherwise        the endpoint's fault: wait until it is up, and on with 3; twice, since
                             the question may be what stops it
                             the question's fault: on with 3 while tries and time are left
  7. given up                "no answer" with its reason is written and handed out
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import os
from typing import Any

import numpy as np

from auditdm_jax.core import streams
from auditdm_jax.core.config import did_you_mean
from auditdm_jax.core.image_store import Images
from auditdm_jax.core.jsonio import canonical_hash
from auditdm_jax.endpoints import replies
from auditdm_jax.endpoints.budget import Budget
from auditdm_jax.endpoints.cache import AnswerCache
from auditdm_jax.endpoints.config import EndpointConfig
from auditdm_jax.endpoints.failures import (
  RULES,
  Denied,
  EndpointRefused,
  Fault,
  Reason,
  one_line,
)
from auditdm_jax.endpoints.gate import Throttle
from auditdm_jax.endpoints.loop import Loop
from auditdm_jax.endpoints.pictures import Pictures
from auditdm_jax.endpoints.replies import Reply
from auditdm_jax.endpoints.wire import Wire

_BACKOFF_S, _MAX_BACKOFF_S = 0.5, 30.0
_FREE_OUTAGES = 2  # Of one question; then its tries count, as it may be what stops the server.
_MAX_SHOWN = 2000  # characters of a question in the cache; its key has them all
_CANARY = "What color is this picture? Answer with one word."
_TEXT_CANARY = "Say yes."
_FORMAT = 1  # Part of every key: raise it when the same question is sent otherwise.


@dataclasses.dataclass(frozen=True)
class _Question:
  """One question and where its picture is to be had.

  Attributes:
    key: key in the cache.
    image_id: "" without a picture.
    load: gives its u8[H,W,3].
    fresh: is neither looked up nor written.
  """

  key: str
  image_id: str
  load: Callable[[], np.ndarray]
  prompt: str
  max_tokens: int
  fresh: bool = False


class Endpoint:
  """One model of an endpoint; `answer` may be called from any thread.

  Attributes:
    name: what it is called in messages.
    config: as it was given.
  """

  def __init__(
    self,
    config: EndpointConfig,
    *,
    name: str = "",
    cache: str | os.PathLike | None = None,
    process: int = 0,
  ):
    """Reads key and cache; connects to nothing.

    Args:
      config: the endpoint.
      name: what to call it; "" = model and address.
      cache: folder of answers, which endpoints may share; None keeps them in memory.
      process: number of this process, when several write into one cache.

    Raises:
      UserError: the key cannot be read, or the cache is damaged.
    """
    self.name = name or f"{config.model} at {config.base_url}"
    self.config = config
    identity = config.identity
    self._cache = AnswerCache(cache, endpoint=identity, process=process)
    self._budget = Budget(
      self.name, config.limits, requests=self._cache.requests, tokens=self._cache.tokens
    )
    self._wire = Wire(config)
    self._pictures = Pictures(config.pictures)
    self._rng = streams.rng(0, "endpoint retries", identity, process)
    self._gate = Throttle(
      self.name,
      self._ask_canary,
      outage_s=config.limits.outage_s,
      rng=self._rng,
      known=self._cache.requests > 0,
    )
    self._sees = False  # A question with a picture has been answered.
    self._slots = asyncio.Semaphore(config.limits.concurrency)
    self._suspects = asyncio.Lock()
    self._under_way: dict[str, asyncio.Future[None]] = {}
    self._loop = Loop(f"endpoint {self.name}")

  def __enter__(self) -> "Endpoint":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def __repr__(self) -> str:
    return f"Endpoint({self.name!r})"

  def close(self) -> None:
    """Ends what is under way and closes the connections; may be called twice."""
    self._loop.close(self._wire.close)

  def answer(
    self,
    images: Sequence[np.ndarray | None],
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    image_ids: Sequence[str | None] | None = None,
    fresh: bool = False,
  ) -> list[Reply]:
    """Answers questions, equal ones once.

    Args:
      images: u8[H,W,3] or None per question. Looked at only where there is no answer yet if
        `image_ids` are given, and possibly from another thread.
      prompts: the questions.
      max_new_tokens: longest answer, its end token included. One more is allowed, so that "length"
        means a longer answer: some servers say it of a whole one that just fits.
      image_ids: `Images.id_of` each picture; computed if absent.
      fresh: ask in any case, and write nothing into the cache.

    Returns:
      One reply per question.

    Raises:
      BudgetSpent: after what was under way has been answered and written.
      EndpointDown, EndpointAbsent: nobody answered for too long.
      EndpointRefused: wrong key, model or address.
    """
    if len(images) != len(prompts) or (image_ids and len(image_ids) != len(prompts)):
      raise ValueError(
        f"{len(images)} images, {len(prompts)} prompts, {image_ids and len(image_ids)} ids"
      )
    ids = list(image_ids) if image_ids else _ids(images)
    asked = [
      self._question(images, i, ids[i] or "", prompts[i], max_new_tokens + 1, fresh)
      for i in range(len(prompts))
    ]
    settled = {} if fresh else {q.key: r for q in asked if (r := self._cache.get(q.key))}
    self._budget.count("cached", len(settled))
    missing = {q.key: q for q in asked if q.key not in settled}
    if missing:
      found = self._loop.run(self._answer_all(list(missing.values())))
      settled |= zip(missing, found, strict=True)
    return [settled[q.key] for q in asked]

  def usage(self) -> dict[str, int]:
    """Returns what this process asked and got: requests, answers, tokens, failures by reason."""
    paused = {"pauses": self._gate.pauses, "paused_seconds": round(self._gate.paused_s)}
    return self._budget.usage() | {name: n for name, n in paused.items() if n}

  def cost(self) -> float | None:
    """Returns the price of the tokens counted in `usage`; None without `config.price`."""
    return self._budget.cost(self.config.price)

  def get(self, path: str) -> Mapping[str, Any]:
    """Returns the JSON object at a path below base_url or at a whole address; {} if none is."""

    async def get() -> Mapping[str, Any]:
      try:
        async with asyncio.timeout(self.config.limits.timeout_s):
          return await self._wire.get(path)
      except (Fault, Denied, TimeoutError):
        return {}

    return self._loop.run(get())

  @property
  def server(self) -> str:
    """The Server header of the last answer."""
    return self._wire.server

  def _question(
    self,
    images: Sequence[np.ndarray | None],
    i: int,
    image_id: str,
    prompt: str,
    max_tokens: int,
    fresh: bool,
  ) -> _Question:
    what = {
      **self.config.named,
      "format": _FORMAT,
      "image": image_id,
      "prompt": prompt,
      "max_tokens": max_tokens,
      "ask": self.config.ask,
      "pictures": self.config.pictures if image_id else None,
    }

    def load() -> np.ndarray:
      image = images[i]
      if image is None:
        raise ValueError(f"no picture {image_id}")
      return image

    return _Question(canonical_hash(what), image_id, load, prompt, max_tokens, fresh)

  async def _answer_all(self, questions: Sequence[_Question]) -> list[Reply]:
    """Asks all; the first error that ends the run keeps the others from being sent."""
    stop: list[BaseException] = []

    async def one(question: _Question) -> Reply | None:
      try:
        return await self._answer(question, stop)
      except Exception as error:
        stop.append(error)
        return None

    found = await asyncio.gather(*map(one, questions))
    if stop:
      raise stop[0]
    return [reply for reply in found if reply is not None]

  async def _answer(self, question: _Question, stop: list[BaseException]) -> Reply:
    """Asks a question unless another thread does just now."""
    while not question.fresh and (other := self._under_way.get(question.key)) is not None:
      await asyncio.wait([other])
      if reply := self._cache.get(question.key):
        self._budget.count("cached")
        return reply
    done = asyncio.get_running_loop().create_future()
    if not question.fresh:
      self._under_way[question.key] = done
    try:
      reply, requests = await self._settle(question, stop)
      bound = question.max_tokens + len(question.prompt.encode("utf-8", "replace"))
      tokens = self._budget.charge(reply, bound=bound)
      if not question.fresh:
        about = {"image": question.image_id, "prompt": question.prompt[:_MAX_SHOWN]}
        await self._cache.put(question.key, reply, requests=requests, tokens=tokens, about=about)
      return reply
    finally:
      if not question.fresh:
        del self._under_way[question.key]
        done.set_result(None)

  async def _settle(self, question: _Question, stop: list[BaseException]) -> tuple[Reply, int]:
    """Returns the reply, and how many requests it took."""
    limits = self.config.limits
    requests = tries = limited = outages = 0
    asked_s = limited_s = waited_s = 0.0
    while True:
      # Of what was under way at two outages, one may have caused them: each alone from now on.
      async with self._suspects if outages > 1 else contextlib.nullcontext(), self._slots:
        url = await self._url(question)
        await self._gate.passable()
        if stop:
          raise stop[0]
        self._budget.take()
        requests += 1
        began = _now()
        timeout_s = min(limits.timeout_s, limits.deadline_s - asked_s)
        outcome = await self._try(question.prompt, url, question.max_tokens, timeout_s)
        took_s = _now() - began
      if isinstance(outcome, Reply):
        self._gate.answered()
        self._sees |= bool(question.image_id) and outcome.text is not None
        return outcome, requests
      if isinstance(outcome, Denied):
        raise await self._refused(outcome)
      if outcome.reason is Reason.RATE_LIMITED:
        wait_s = self._backoff(limited) if outcome.wait_s is None else outcome.wait_s
        limited, limited_s = limited + 1, limited_s + took_s + wait_s
        if self._gate.answered_since(began) and limited_s > limits.outage_s:
          return replies.no_answer(outcome), requests
        await self._gate.limited(wait_s, began=began)
        continue
      rule = RULES[outcome.reason]
      if not (rule.shared or rule.silent):
        self._gate.admitted()
      unclear = rule.silent or (rule.shared and not self._gate.answered_since(began))
      if unclear and not await self._gate.is_up():
        outages += 1
        if outages <= _FREE_OUTAGES:
          continue
      tries, asked_s = tries + 1, asked_s + took_s
      if not rule.retried or tries > limits.retries or asked_s >= limits.deadline_s:
        return replies.no_answer(outcome), requests
      wait_s = max(self._backoff(tries - 1), outcome.wait_s or 0.0)
      waited_s += wait_s
      if waited_s > limits.outage_s:  # A server may ask to come back tomorrow.
        return replies.no_answer(outcome), requests
      self._budget.count("retries")
      await asyncio.sleep(wait_s)

  async def _url(self, question: _Question) -> str:
    if not question.image_id:
      return ""
    return await asyncio.to_thread(self._pictures.url, question.image_id, question.load)

  async def _try(
    self, prompt: str, url: str, max_tokens: int, timeout_s: float
  ) -> Reply | Fault | Denied:
    try:
      async with asyncio.timeout(timeout_s):
        return await self._wire.chat(prompt, url, max_tokens=max_tokens)
    except TimeoutError:
      return Fault(Reason.TIMEOUT, f"{timeout_s:.0f} s")
    except (Fault, Denied) as outcome:
      return outcome

  async def _ask_canary(self) -> Fault | None:
    """Asks a harmless question; returns None if the endpoint is up (gate.Canary).

    It has a picture only where one was answered before: some servers fail (500) on any picture,
    which is to be told from an outage, and some on a question without one.
    """
    self._budget.take()
    self._budget.count("canaries")
    prompt, url = (_CANARY, _canary_url(self._pictures)) if self._sees else (_TEXT_CANARY, "")
    outcome = await self._try(prompt, url, 4, self.config.limits.timeout_s)
    if isinstance(outcome, Fault) and outcome.reason is Reason.FORBIDDEN:
      outcome = Denied(403, outcome.detail)
    if isinstance(outcome, Denied):
      raise await self._refused(outcome)
    # It may not like the question, but it is there.
    if isinstance(outcome, Reply) or not (
      RULES[outcome.reason].shared or outcome.reason is Reason.RATE_LIMITED
    ):
      return None
    return outcome

  async def _refused(self, denied: Denied) -> EndpointRefused:
    """Returns the error of a user that has the wrong key, model or address."""
    config, said = self.config, f"HTTP {denied.status}: {denied.detail}"
    if denied.status in (401, 403):
      where = config.key_file or config.key_env
      key = f"the key of {where} is" if where else "no key is given, see endpoint.key_file; it is"
      return EndpointRefused(f"{self.name}: {key} not accepted ({said})")
    if denied.status != 404:
      return EndpointRefused(f"{self.name} takes no requests ({said})")
    try:
      listed = (await self._wire.get("/models")).get("data")
    except (Fault, Denied):
      listed = None
    rows = listed if isinstance(listed, list) else []
    names = [one_line(row.get("id"), 80) for row in rows if isinstance(row, dict)]
    if not names or config.model in names:
      return EndpointRefused(f"{self.name}: endpoint.base_url or endpoint.model is wrong ({said})")
    near = did_you_mean(config.model, names)
    return EndpointRefused(
      f"{self.name}: endpoint.model is not there{near}; it has {', '.join(names[:10])} ({said})"
    )

  def _backoff(self, turn: int) -> float:
    """Returns the seconds before a further try: doubled each time, half of it by chance."""
    whole = min(_BACKOFF_S * 2**turn, _MAX_BACKOFF_S)
    return whole * self._rng.uniform(0.5, 1.0)


def _now() -> float:
  return asyncio.get_running_loop().time()


def _canary_url(pictures: Pictures) -> str:
  red = np.zeros((224, 224, 3), np.uint8)
  red[..., 0] = 255
  return pictures.url("canary", lambda: red)


def _ids(images: Sequence[np.ndarray | None]) -> list[str | None]:
  """Content ids; an array object that occurs often is hashed once."""
  by_object: dict[int, str] = {}
  for image in images:
    if image is not None and id(image) not in by_object:
      by_object[id(image)] = Images.id_of(image)
  return [None if image is None else by_object[id(image)] for image in images]
