# SPDX-License-Identifier: Apache-2.0
"""What makes the images: the protocol, a job for it, and how a batch of jobs is run."""

from collections.abc import Sequence
import dataclasses
import functools
import hashlib
from typing import Any, Protocol

import numpy as np


class Backend(Protocol):
  """Called from one thread, with rows of one kind and size.

  Each row gives u8[H,W,3] or the exception that is its own: a ValueError says that the caption or
  instruction cannot be carried out (the auditor's fault), anything else that the backend failed.
  An exception that is raised concerns the batch, which is then halved to find the row.
  A row must depend on its own text, seed and source only, not on its companions.
  """

  def generate(
    self, prompts: list[str], seeds: list[int], *, width: int, height: int
  ) -> list[np.ndarray | Exception]: ...

  def edit(
    self, images: list[np.ndarray], instructions: list[str], seeds: list[int]
  ) -> list[np.ndarray | Exception]: ...

  def info(self) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
  """A validated request.

  Attributes:
    source: u8[H,W,3] of an edit, None to generate.
  """

  request_id: str
  text: str
  seed: int
  width: int
  height: int
  source: np.ndarray | None = None

  @property
  def key(self) -> tuple[str, int, int]:
    """Jobs with equal keys can share a batch."""
    return "generate" if self.source is None else "edit", self.width, self.height

  @property
  def source_bytes(self) -> int:
    return 0 if self.source is None else self.source.nbytes

  @functools.cached_property
  def fingerprint(self) -> bytes:
    """Hash of all but the id."""
    digest = hashlib.sha256(repr((self.key, self.seed, self.text)).encode())
    if self.source is not None:
      digest.update(self.source.data)
    return digest.digest()


def run_batch(backend: Backend, jobs: Sequence[Job]) -> list[np.ndarray | Exception]:
  """One outcome per job, whatever the backend does; jobs share a key."""
  try:
    rows = _call(backend, jobs)
  except Exception as error:
    if len(jobs) == 1:
      # Raised, not returned: a ValueError here is the backend's bug and not the caption's.
      return [RuntimeError(f"{type(error).__name__}: {error}").with_traceback(error.__traceback__)]
    # One poisoned row, or too many for the memory: the halves tell.
    half = len(jobs) // 2
    return run_batch(backend, jobs[:half]) + run_batch(backend, jobs[half:])
  return [_checked(row, job) for row, job in zip(rows, jobs)]


def _call(backend: Backend, jobs: Sequence[Job]) -> list[np.ndarray | Exception]:
  texts, seeds = [j.text for j in jobs], [j.seed for j in jobs]
  if jobs[0].source is None:
    rows = backend.generate(texts, seeds, width=jobs[0].width, height=jobs[0].height)
  else:
    rows = backend.edit([j.source for j in jobs], texts, seeds)
  if len(rows) != len(jobs):
    raise RuntimeError(f"{len(rows)} rows for {len(jobs)} requests")
  return rows


def _checked(row: np.ndarray | Exception, job: Job) -> np.ndarray | Exception:
  if isinstance(row, Exception):
    return row
  if not isinstance(row, np.ndarray):
    return TypeError(f"the backend made a {type(row).__name__}, not an array")
  want = (job.height, job.width, 3)
  if row.dtype != np.uint8 or row.shape != want:
    return TypeError(f"the backend made {row.dtype}{list(row.shape)}, not uint8{list(want)}")
  return row
