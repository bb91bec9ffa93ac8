# SPDX-License-Identifier: Apache-2.0
"""Completions as OpenAI's API writes them: one object, or server-sent events."""

import bisect
from collections.abc import Iterator, Sequence
import dataclasses
import json
from typing import Any, Literal

from auditdm_jax.text.tokenizer import Tokenizer
from auditdm_jax.vlm import Completion


@dataclasses.dataclass(frozen=True)
class Told:
  """What is told of a completion.

  Attributes:
    text: without what ended it.
    tokens: how many were needed, what ended it included.
    reason: "stop" for a terminator or a stop string, "length" for neither.
  """

  text: str
  tokens: int
  reason: Literal["stop", "length"]


@dataclasses.dataclass(frozen=True)
class Response:
  """An answer to a request.

  Attributes:
    id: name of the answer.
    created: when, in seconds since 1970.
    model: its name.
    prompt_tokens: length of the prompt, image slots included.
    said: the answer.
    seed: seed of the sampling; None for a greedy answer.
  """

  id: str
  created: int
  model: str
  prompt_tokens: int
  said: Told
  seed: int | None = None

  def to_json(self) -> dict[str, Any]:
    """Returns a chat.completion."""
    message = {"role": "assistant", "content": self.said.text, "refusal": None}
    return self._object("chat.completion", [self._choice("message", message, self.said.reason)]) | {
      "usage": self._usage()
    }

  def to_events(self, *, usage: bool) -> Iterator[str]:
    """Yields the events of a stream: the role, the text, the end, and what it took if asked for."""
    deltas: list[tuple[dict[str, Any], str | None]] = [
      ({"role": "assistant", "content": "", "refusal": None}, None),
      ({"content": self.said.text}, None),
      ({}, self.said.reason),
    ]
    none = {"usage": None} if usage else {}
    for delta, reason in deltas:
      chunk = self._object("chat.completion.chunk", [self._choice("delta", delta, reason)])
      yield _event(json.dumps(chunk | none))
    if usage:
      yield _event(json.dumps(self._object("chat.completion.chunk", []) | {"usage": self._usage()}))
    yield _event("[DONE]")

  def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
    seed = {} if self.seed is None else {"seed": self.seed}
    return head | seed | {"choices": choices}

  def _choice(self, key: str, value: dict[str, Any], reason: str | None) -> dict[str, Any]:
    return {"index": 0, key: value, "logprobs": None, "finish_reason": reason}

  def _usage(self) -> dict[str, int]:
    prompt, answer = self.prompt_tokens, self.said.tokens
    return {
      "prompt_tokens": prompt,
      "completion_tokens": answer,
      "total_tokens": prompt + answer,
    }


def read(tokenizer: Tokenizer, completion: Completion, stops: Sequence[str]) -> Told:
  """Returns the text of a completion, up to the first of the stop strings."""
  tokens = completion.tokens
  text = tokenizer.decode(tokens)
  found = [at for stop in stops if (at := text.find(stop)) >= 0]
  if not found:
    return Told(text.strip(), len(tokens), "length" if completion.truncated else "stop")

  def stopped(n: int) -> bool:
    said = tokenizer.decode(tokens[:n])
    return any(stop in said for stop in stops)

  needed = bisect.bisect_left(range(len(tokens) + 1), True, key=stopped)
  return Told(text[: min(found)].strip(), needed, "stop")


def _event(data: str) -> str:
  return f"data: {data}\n\n"
