# SPDX-License-Identifier: Apache-2.0
"""Records of an audit: what was asked, what came back, what was decided.

Every record has a version; a reader ignores fields it does not know (with a warning when the
record is newer than the reader) and fills missing ones with their defaults.
"""

import dataclasses
import functools
import types
import typing
from typing import Any, ClassVar, Self
import warnings

from auditdm_jax.core.store import canonical_hash

GRADES = ("V0", "V1", "V2", "V3")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
  return {
    k: v for k, v in typing.get_type_hints(cls).items() if typing.get_origin(v) is not ClassVar
  }


def _decode(hint: Any, value: Any) -> Any:
  """JSON value → field value: nested records and tuples are the only things JSON loses."""
  if value is None:
    return None
  origin = typing.get_origin(hint)
  if origin in (types.UnionType, typing.Union):
    return _decode(next(a for a in typing.get_args(hint) if a is not type(None)), value)
  if origin is tuple:
    inner = typing.get_args(hint)[0]
    return tuple(_decode(inner, v) for v in value)
  if origin is dict:
    inner = typing.get_args(hint)[1]
    return {k: _decode(inner, v) for k, v in value.items()}
  if isinstance(hint, type) and issubclass(hint, Record):
    return hint.from_dict(value)
  return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
  """Base of all records; `VERSION` rises when a field changes its meaning."""

  VERSION: ClassVar[int] = 1
  version: int = 1

  def to_dict(self) -> dict[str, Any]:
    """Plain JSON-able dict; nested records become dicts."""
    return dataclasses.asdict(self)

  @classmethod
  def from_dict(cls, data: dict[str, Any]) -> Self:
    """Reads records of this and older versions, and the known fields of newer ones."""
    if data.get("version", 1) > cls.VERSION:
      warnings.warn(
        f"{cls.__name__} of version {data['version']} read by version {cls.VERSION}:"
        " unknown fields are ignored",
        stacklevel=2,
      )
    hints = _hints(cls)
    return cls(**{k: _decode(hints[k], v) for k, v in data.items() if k in hints})


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
  step: int = -1  # training step of the auditor, -1 outside training

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
  is the first reference's own wording (a label to train on), not its normalised form.
  """

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate(Record):
  """Outcome of one gate: the number it measured and the limit it was held to."""

  name: str
  passed: bool
  value: float
  limit: str
  note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stability(Record):
  """How often the same disagreement came back under harmless changes."""

  k: int
  n: int
  trials: tuple[str, ...] = ()  # "greedy:1", "paraphrase:0", "jitter:1", …

  @property
  def share(self) -> float:
    """k / n, 0 when nothing was tried."""
    return self.k / self.n if self.n else 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure(Record):
  """A find with everything that verification learned about it; `grade` says how far it got."""

  probe: Probe
  verdict: Verdict
  grade: str
  gates: tuple[Gate, ...] = ()
  stability: Stability | None = None
  independent: str | None = None  # answer of the judge outside the ensemble, if any
  independent_agrees: bool | None = None  # None: not asked, or it could not answer
  label: str | None = None  # V3: a person's decision
  mode_id: str | None = None

  @property
  def verified(self) -> bool:
    """True from grade V1 on."""
    return GRADES.index(self.grade) >= 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rate(Record):
  """Failure rate of a mode on fresh probes."""

  mode_id: str
  model: str
  k: int
  n: int
  rate: float | None
  ci95: tuple[float, ...]
