# SPDX-License-Identifier: Apache-2.0
"""What makes the images: the protocol of a backend, and what it is given and gives back."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import hashlib
from typing import Literal, Protocol

import numpy as np

Mode = Literal["generate", "edit", "sham"]
MAX_SIDE, MAX_PIXELS = 1 << 14, 1 << 26  # of any image, whatever a service says
Progress = Callable[[int, int], None]  # (steps done, of n); may raise Cancelled.


class Cancelled(Exception):
  """Raised by `progress` when nobody waits for any row; a backend lets it through."""


@dataclasses.dataclass(frozen=True)
class Info:
  """What a backend is and what it takes; constant once it is loaded.

  Attributes:
    name: name of the model.
    revision: revision of its weights.
    properties: whatever else decides the pixels (dtype, library versions), as text.
    modes: those it can do; "sham" encodes and decodes the source and changes nothing else.
    steps: the default number; 0 = there are no steps to choose.
    guidance: the default scale; None = there is none to choose.
    negative: whether it takes a negative prompt.
    sizes: (width, height) it can draw; () = any whose sides are multiples of `multiple`.
    multiple: what both sides must be multiples of.
    min_side: the shortest one.
    max_side: the longest one.
    max_pixels: most pixels of an image; the server's `images.limits` narrow all three.
    exact: nothing may be scaled or padded to one of `sizes`, because pixels are a code of its own.
    batch_sizes: ascending; a batch is padded to the next of them, and a deterministic one to the
      last. () = rows do not depend on the number of rows.
  """

  name: str
  revision: str = ""
  properties: Mapping[str, str] = dataclasses.field(default_factory=dict)
  modes: tuple[Mode, ...] = ("generate", "edit")
  steps: int = 0
  guidance: float | None = None
  negative: bool = False
  sizes: tuple[tuple[int, int], ...] = ()
  multiple: int = 1
  min_side: int = 1
  max_side: int = MAX_SIDE
  max_pixels: int = MAX_PIXELS
  exact: bool = False
  batch_sizes: tuple[int, ...] = ()

  @functools.cached_property
  def identity(self) -> str:
    """Equal requests to equal identities give equal images."""
    parts = self.name, self.revision, sorted(self.properties.items())
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
  """A validated request, its defaults filled in.

  Attributes:
    text: the caption or the instruction.
    source: u8[H,W,3] of an edit or sham, None to generate; width and height are its own.
    steps: 0 where Info.steps is 0.
    guidance: None where Info.guidance is None.
    negative: "" = none; never given where Info.negative is False.
    deterministic: the image must not depend, by a single bit, on what shares its batch.
    sham: only encode and decode the source; the text is empty.
  """

  request_id: str
  text: str
  seed: int
  width: int
  height: int
  source: np.ndarray | None = None
  steps: int = 0
  guidance: float | None = None
  negative: str = ""
  deterministic: bool = False
  sham: bool = False

  @property
  def mode(self) -> Mode:
    if self.sham:
      return "sham"
    return "generate" if self.source is None else "edit"

  @property
  def cost(self) -> int:
    """Pixels times steps."""
    return self.width * self.height * max(self.steps, 1)

  @property
  def key(self) -> tuple:
    """Jobs with equal keys can share a batch."""
    return (
      self.mode,
      self.width,
      self.height,
      self.steps,
      self.guidance,
      bool(self.negative),
      self.deterministic,
    )

  @property
  def source_bytes(self) -> int:
    return 0 if self.source is None else self.source.nbytes

  @functools.cached_property
  def fingerprint(self) -> bytes:
    """Hash of all but the id."""
    digest = hashlib.sha256(repr((self.key, self.seed, self.text, self.negative)).encode())
    if self.source is not None:
      digest.update(self.source.data)
    return digest.digest()


@dataclasses.dataclass(frozen=True, eq=False)
class Made:
  """One image.

  Attributes:
    image: u8[H,W,3], contiguous.
    truncated: the model saw only the beginning of the text.
  """

  image: np.ndarray
  truncated: bool = False


class Backend(Protocol):
  """Made, warmed up and called in one and the same thread.

  `run` is given 1 to max_batch jobs of one key, padded as Info.batch_sizes says, and returns one
  row per job in order: Made, or the exception that is this row's own. A ValueError says that the
  text cannot be carried out (the auditor's fault), a Refused says it in full, such as that there is
  no room at present; any other that the backend failed.

  What it raises concerns the whole batch: MemoryError says that the batch is too large (clear the
  caches first) and makes this key's batches smaller from then on; any other exception makes the
  batch be halved until the poisoned row is alone. After a raise the backend must be usable.

  It calls `progress(i, n)` after each step i = 1..n, if it has steps; Cancelled passes through.

  A row depends on its own job only: its own noise from its own seed, whatever its place in the
  batch. With Info.batch_sizes, bitwise so at equal numbers of rows.
  """

  def info(self) -> Info: ...

  def run(self, jobs: Sequence[Job], progress: Progress) -> Sequence[Made | Exception]: ...


class Draw(Protocol):
  """A simpler thing that `Plain` makes a backend of: rows of functions, without steps."""

  def generate(
    self, prompts: list[str], seeds: list[int], *, width: int, height: int
  ) -> list[np.ndarray | Exception]: ...

  def edit(
    self, images: list[np.ndarray], instructions: list[str], seeds: list[int]
  ) -> list[np.ndarray | Exception]: ...


class Plain:
  """A backend of a `Draw`."""

  def __init__(self, draw: Draw, info: Info):
    self._draw, self._info = draw, info

  def info(self) -> Info:
    return self._info

  def run(self, jobs: Sequence[Job], progress: Progress) -> list[Made | Exception]:
    del progress
    texts, seeds = [j.text for j in jobs], [j.seed for j in jobs]
    if jobs[0].sham:
      rows = [j.source for j in jobs]  # Pixels are its own code.
    elif jobs[0].source is None:
      rows = self._draw.generate(texts, seeds, width=jobs[0].width, height=jobs[0].height)
    else:
      rows = self._draw.edit([j.source for j in jobs], texts, seeds)
    return [row if isinstance(row, Exception) else Made(row) for row in rows]
