# SPDX-License-Identifier: Apache-2.0
"""What the modes of a later round are to those of the rounds before.

Members are compared, not names, on the attempts of the later round. A mode of which earlier modes
cover at least half is the same, a part of an earlier one (split), or several of them (merged). Any
other is new if fresh probes confirm it and the target fails there more often than the one before
its last repair did. Otherwise the rounds before missed it.

Both are new to the audit. A round without such a mode has found nothing new at its budget.
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import Literal

import numpy as np

from auditdm_jax.audit import rates
from auditdm_jax.audit.confirm import ModeTest
from auditdm_jax.audit.mode import Mode
from auditdm_jax.audit.rates import Rate

Relation = Literal["same", "split", "merged", "new", "missed", "not confirmed", "too few"]

_COVERED = 0.5  # Share of a mode's members, from which on it is known.
_PARENT = 0.2  # Share of them, from which on an earlier mode has a part in it.


@dataclasses.dataclass(frozen=True)
class Descent:
  """Where a mode of a later round comes from.

  Attributes:
    mode_id: its id.
    parents: ids of the earlier modes with a part in it, the largest first.
    covered: its members that fall under any earlier mode.
    relation: to its parents; None if earlier modes do not cover it.
  """

  mode_id: str
  parents: tuple[str, ...]
  covered: Rate
  relation: Relation | None


def descent(
  earlier: Sequence[Mode],
  later: Sequence[Mode],
  was: Sequence[Mode | None],
  now: Sequence[Mode | None],
) -> list[Descent]:
  """Compares the modes of a round with those of the rounds before.

  Args:
    earlier: the earlier modes, each id once.
    later: the later ones.
    was: the earlier mode of each attempt of the later round, or None.
    now: the later mode of the same attempts, or None.
  """
  place = {m.mode_id: i for i, m in enumerate(earlier)}
  place_now = {m.mode_id: i for i, m in enumerate(later)}
  both = np.zeros((len(place) + 1, len(place_now) + 1), np.int64)
  for a, b in zip(was, now, strict=True):
    both[place[a.mode_id] if a else -1, place_now[b.mode_id] if b else -1] += 1
  sizes = both[:-1].sum(axis=1)
  return [
    _descent(mode, earlier, both[:-1, i], int(both[:, i].sum()), sizes)
    for i, mode in enumerate(later)
  ]


def _descent(
  mode: Mode, earlier: Sequence[Mode], shared: np.ndarray, n: int, sizes: np.ndarray
) -> Descent:
  covered = rates.rate(int(shared.sum()), n)
  order = np.argsort(-shared, kind="stable")
  parents = [int(i) for i in order if n and shared[i] >= _PARENT * n]
  relation: Relation | None = None
  if n and shared.sum() >= _COVERED * n:
    if len(parents) > 1:
      relation = "merged"
    elif parents and shared[parents[0]] < 0.5 * sizes[parents[0]]:
      relation = "split"
    else:
      relation = "same"
  return Descent(mode.mode_id, tuple(earlier[i].mode_id for i in parents), covered, relation)


def relation(found: Descent, test: ModeTest, *, before: ModeTest) -> Relation:
  """What a mode of a later round is.

  Args:
    found: where it comes from.
    test: on fresh probes to the target of the round.
    before: the same probes to the target of the round before.
  """
  if found.relation is not None:
    return found.relation
  if test.status != "confirmed":
    return test.status
  return "new" if shown_above(test.fresh, before.fresh) else "missed"


def is_new(relation: Relation | str) -> bool:
  """Whether a mode is one that no earlier round had, and that holds."""
  return relation in ("new", "missed")


def shown_above(rate: Rate, other: Rate) -> bool:
  """Whether the interval of the difference of two rates lies above 0.

  Newcombe 1998 (Statistics in Medicine 17:873), method 10; conservative on the same probes.
  """
  if not rate.n or not other.n:
    return False
  return rate.value - other.value > math.hypot(
    rate.value - rate.ci95[0], other.ci95[1] - other.value
  )
