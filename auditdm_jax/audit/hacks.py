# SPDX-License-Identifier: Apache-2.0
"""Finds that are no failures of the target, counted by what makes them look like one.

  consensus  the references are wrong: by an oracle or by labels
  question   it is ambiguous: it has no true answer, or the references change theirs when it is
             worded otherwise
  wording    the conflict is about words: with fewer than half of the other wordings it comes back
             while the references keep their answer, or both answers are right
  image      it is an artefact of a made image: an edit changed what it must not, the image is
             blank, or answers flip on the sham, which was encoded and decoded without an edit

Each kind is counted over the finds of which somebody or some trial can tell; an image that nobody
made has no artefact. Finds that stand for others count as often (`Failure.weight`). Ours.
"""

from collections.abc import Callable, Sequence
import dataclasses
import operator

from auditdm_jax.audit.attempt import Failure, Find, Opinion
from auditdm_jax.audit.rates import Rate, rate_by_image

KINDS = ("consensus", "question", "wording", "image")
LIMIT = 0.03  # Above it a kind is flagged.
_OF_IMAGES = ("edit_outside", "sham_control")  # Gates that tell of a made image.
_KNOWS = ("oracle", "labels")  # A model outside the ensemble has an opinion, and may be wrong.


@dataclasses.dataclass(frozen=True)
class Doubts:
  """What is known against a find, by kind; None is what was not measured."""

  consensus: bool | None
  question: bool | None
  wording: bool | None
  image: bool | None


@dataclasses.dataclass(frozen=True)
class HackCounts:
  """Some finds, and the share that each kind explains; n = 0 where nothing measured it."""

  finds: int
  consensus: Rate
  question: Rate
  wording: Rate
  image: Rate

  @property
  def flagged(self) -> tuple[str, ...]:
    """The kinds above the limit."""
    return tuple(k for k in KINDS if (vars(self)[k].rate or 0.0) > LIMIT)


@dataclasses.dataclass(frozen=True)
class ArmHacks:
  """The finds of an arm, and those of them that were verified; None where nobody verified."""

  found: HackCounts
  verified: HackCounts | None


def doubts(find: Find, opinion: Opinion | None) -> Doubts:
  """Returns what is known against a find.

  Args:
    find: a `Failure` has trials and gates, which a find alone has not.
    opinion: of who knows the truth; None if nobody does.
  """
  known = opinion if opinion and opinion.by in _KNOWS else None
  side = known.side if known and known.side not in ("not measured", "undecided") else None
  unanswerable = None if side is None else known is not None and known.answer is None
  gates = {g.name: g.passed for g in find.gates} if isinstance(find, Failure) else {}
  keeps = gates.get("answerable")
  return Doubts(
    consensus=None if side is None else side in ("target", "neither") and not unanswerable,
    question=_any(unanswerable, None if keeps is None else not keeps),
    wording=_any(None if side is None else side == "both", _in_this_wording_only(find, keeps)),
    image=_is_artefact(find, gates),
  )


def _any(*told: bool | None) -> bool | None:
  """True if one is; None if none is told."""
  known = [x for x in told if x is not None]
  return any(known) if known else None


def _in_this_wording_only(find: Find, keeps: bool | None) -> bool | None:
  if not isinstance(find, Failure) or find.stability is None:
    return None
  again = [t.endswith("=1") for t in find.stability.trials if t.startswith("paraphrase")]
  if not again:
    return None
  return keeps is not False and sum(again) * 2 < len(again)


def _is_artefact(find: Find, gates: dict[str, bool | None]) -> bool | None:
  probe = find.probe
  if probe.source_image_id is None or probe.source_image_id == probe.image_id:
    return False
  if gates.get("image_sane") is False:
    return True
  return _any(*(None if gates.get(n) is None else not gates[n] for n in _OF_IMAGES))


def count(finds: Sequence[Find], opinions: Sequence[Opinion | None]) -> HackCounts:
  """Returns the share of each kind among finds, by image."""
  told = [doubts(f, o) for f, o in zip(finds, opinions, strict=True)]
  weights = [f.weight if isinstance(f, Failure) else 1.0 for f in finds]

  def share(of: Callable[[Doubts], bool | None]) -> Rate:
    known = [i for i, doubt in enumerate(told) if of(doubt) is not None]
    return rate_by_image(
      [bool(of(told[i])) for i in known],
      [finds[i].probe.origin_id for i in known],
      weights=[weights[i] for i in known],
    )

  return HackCounts(len(finds), **{kind: share(operator.attrgetter(kind)) for kind in KINDS})
