# SPDX-License-Identifier: Apache-2.0
"""Records of an audit, and the two that come first: what was asked, and what came back.

Every record has a version; a reader ignores fields it does not know (with a warning when the
record is newer than the reader) and fills missing ones with their defaults.
"""

import dataclasses
from typing import Any, ClassVar, Self
import warnings

from auditdm_jax.core import typed
from auditdm_jax.core.jsonio import canonical_hash, plain


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
  """Base of all records; `VERSION` rises when a field changes its meaning."""

  VERSION: ClassVar[int] = 1
  version: int = 1

  def to_dict(self) -> dict[str, Any]:
    """Plain JSON-able dict; nested records become dicts."""
    return plain(self)

  @classmethod
  def from_dict(cls, data: dict[str, Any]) -> Self:
    """Reads records of this and older versions, and the known fields of newer ones."""
    if data.get("version", 1) > cls.VERSION:
      warnings.warn(
        f"{cls.__name__} of version {data['version']} read by version {cls.VERSION}:"
        " unknown fields are ignored",
        stacklevel=2,
      )
    return typed.load(cls, data)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe(Record):
  """A (question, image) pair and where it came from."""

  probe_id: str
  image_id: str
  question: str
  strategy: str = "question"
  arm: str = ""
  source: str = ""  # data set, split, item and licence of the source image
  source_image_id: str | None = None
  instruction: str | None = None
  caption: str | None = None
  seed: int = 0
  fit: str = ""  # how its image was brought to a size that the service takes
  step: int = -1  # training step of the auditor, -1 outside training
  way: str = ""  # how it was chosen from what was proposed, see `audit.ranking`
  score: float | None = None  # probability of a find, see `audit.ranking`; None = not known

  @property
  def origin_id(self) -> str:
    """The image that it goes back to, itself if it was not made: the unit of the statistics."""
    return self.source_image_id or self.image_id

  @classmethod
  def make(cls, image_id: str, question: str, **fields: Any) -> Self:
    """A probe with its id: the hash of image and question."""
    key = probe_id(image_id, question)
    return cls(probe_id=key, image_id=image_id, question=question, **fields)


def probe_id(image_id: str, question: str) -> str:
  """Identity of a probe; the same question about the same pixels is the same probe."""
  return canonical_hash([image_id, question])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict(Record):
  """All answers to a probe and what follows from them.

  `answers[name]` is the short answer, which was judged: None where a cascade did not need to ask,
  "" where the model gave none. `raw[name]` is what it said, where that is something else, and
  `kinds[name]` what the reply was, where it was no plain answer (`text.short.Short`). `consensus`
  is the wording of the first reference that agrees (a label to train on), not its normalised form.
  From version 2 on, a "skipped" verdict has the answer there that the target shares.
  """

  VERSION: ClassVar[int] = 2
  version: int = 2

  probe_id: str
  answers: dict[str, str | None]
  target: str
  references: tuple[str, ...]
  consensus: str | None
  agree: bool
  disagreement: bool
  reason: str
  raw: dict[str, str] = dataclasses.field(default_factory=dict)
  kinds: dict[str, str] = dataclasses.field(default_factory=dict)
