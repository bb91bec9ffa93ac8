# SPDX-License-Identifier: Apache-2.0
"""Answers on disk: a run that was killed asks nothing twice.

One row per question that is done with, under a key made of everything that the answer depends on.
A row is on disk before its answer is handed out.
"""

import asyncio
from collections.abc import Mapping
import os
from typing import Any

from auditdm_jax.core.records import Records
from auditdm_jax.endpoints.failures import RULES, Reason
from auditdm_jax.endpoints.replies import Reply, Usage

_NAME = "answers"


class AnswerCache:
  """The answers of one endpoint in a folder that endpoints and processes may share.

  Attributes:
    requests: sent for the rows that were found when it was opened.
    tokens: charged for them.
  """

  def __init__(self, folder: str | os.PathLike | None, *, endpoint: str, process: int = 0):
    """Reads what is there.

    Args:
      folder: where the rows are; None keeps them in memory only.
      endpoint: identity of the endpoint; rows of others are passed over.
      process: this process, which writes a shard of its own.

    Raises:
      UserError: a row is damaged.
    """
    self._endpoint = endpoint
    self._records = None if folder is None else Records(folder, process)
    self._replies: dict[str, Reply] = {}
    self._rows: list[Mapping[str, Any]] = []  # Not yet on disk.
    self._writing = asyncio.Lock()
    self.requests = self.tokens = 0
    for row in self._records.iterate(_NAME) if self._records else ():
      if row["endpoint"] == endpoint:
        self.requests += row["requests"]
        self.tokens += row["tokens"]
        self._keep(row["key"], _from_row(row))

  def get(self, key: str) -> Reply | None:
    """Returns what came of a question, if that is settled."""
    return self._replies.get(key)

  async def put(
    self, key: str, reply: Reply, *, requests: int, tokens: int, about: Mapping[str, Any]
  ) -> None:
    """Writes what came of a question; it is on disk on return.

    Rows that come while others are being written share the next write.

    Args:
      key: key of the question.
      reply: its answer, or "no answer".
      requests: how many were sent for it.
      tokens: charged for it.
      about: what people want to see next to it.
    """
    if self._records is not None:
      row = {"endpoint": self._endpoint, "key": key, **about, **_to_row(reply)}
      self._rows.append({**row, "requests": requests, "tokens": tokens})
      async with self._writing:
        rows, self._rows = self._rows, []
        if rows:
          await asyncio.to_thread(self._records.append, _NAME, rows)
    self._keep(key, reply)

  def _keep(self, key: str, reply: Reply) -> None:
    if reply.failure is None or RULES[reply.failure].kept:
      self._replies[key] = reply


def _to_row(reply: Reply) -> dict[str, Any]:
  return {
    "text": reply.text,
    "finish": reply.finish,
    "failure": None if reply.failure is None else reply.failure.name,
    "detail": reply.detail,
    "origin": reply.origin,
    "prompt_tokens": reply.usage.prompt,
    "completion_tokens": reply.usage.completion,
    "logprob": reply.logprob,
  }


def _from_row(row: Mapping[str, Any]) -> Reply:
  return Reply(
    row["text"],
    row["finish"],
    None if row["failure"] is None else Reason[row["failure"]],
    usage=Usage(row["prompt_tokens"], row["completion_tokens"]),
    detail=row["detail"],
    origin=row["origin"],
    logprob=row.get("logprob"),  # Rows of earlier versions have none.
  )
