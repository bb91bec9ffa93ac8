# SPDX-License-Identifier: Apache-2.0
"""Are modes the same when the data are drawn again, and from one audit to the next?"""

from collections.abc import Sequence
import dataclasses

import numpy as np
from scipy import optimize

from auditdm_jax.audit.taxonomy import Mode, Outcome, Taxonomy, discover_modes


@dataclasses.dataclass(frozen=True)
class Alignment:
  """How the modes of a new audit relate to those of the last one.

  Attributes:
    taxonomy: the new one, with the old ids and names where a mode is the same.
    kept: (mode_id, Jaccard overlap) of modes carried over.
    new: ids of modes without a predecessor.
    lost: old ids without a successor.
    merged: (new id, old ids) where one mode now covers several old ones.
    split: (old id, new ids) where one old mode became several.
  """

  taxonomy: Taxonomy
  kept: tuple[tuple[str, float], ...]
  new: tuple[str, ...]
  lost: tuple[str, ...]
  merged: tuple[tuple[str, tuple[str, ...]], ...]
  split: tuple[tuple[str, tuple[str, ...]], ...]


def align(
  old: Taxonomy,
  new: Taxonomy,
  questions: Sequence[str],
  consensus: Sequence[str | None],
  *,
  least: float = 0.5,
) -> Alignment:
  """Carries mode ids over by Hungarian matching on the probes both taxonomies are shown.

  Args:
    old: the taxonomy of the last audit.
    new: that of this audit.
    questions: probes to compare them on, e.g. the attempts of both audits.
    consensus: their consensus answers.
    least: smallest Jaccard overlap of "the same" mode; also the smallest share of a part that
      must lie in the whole for a merge or split.
  """
  a, b = _members(old, questions, consensus), _members(new, questions, consensus)
  shared = a.astype(np.int64) @ b.T.astype(np.int64)
  size_a, size_b = a.sum(axis=1), b.sum(axis=1)
  jaccard = shared / np.maximum(size_a[:, None] + size_b[None, :] - shared, 1)
  rows, columns = optimize.linear_sum_assignment(-jaccard)
  same = {int(j): int(i) for i, j in zip(rows, columns) if jaccard[i, j] >= least}
  # An id is derived from the definition, so an unmatched new mode might carry an old one's id.
  taken = {old.modes[i].mode_id for i in same.values()}
  modes = []
  for j, mode in enumerate(new.modes):
    if j in same:
      before = old.modes[same[j]]
      mode = dataclasses.replace(mode, mode_id=before.mode_id, name=before.name)
    elif mode.mode_id in taken:
      mode = dataclasses.replace(mode, mode_id=mode.mode_id + "-b")
    modes.append(mode)
  inside_new = shared / np.maximum(size_a[:, None], 1) >= least
  inside_old = shared / np.maximum(size_b[None, :], 1) >= least
  old_ids, new_ids = [m.mode_id for m in old.modes], [m.mode_id for m in modes]
  return Alignment(
    taxonomy=dataclasses.replace(new, modes=tuple(modes)),
    kept=tuple((new_ids[j], float(jaccard[i, j])) for j, i in sorted(same.items())),
    new=tuple(new_ids[j] for j in range(len(modes)) if j not in same),
    lost=tuple(old_ids[i] for i in range(len(old_ids)) if i not in same.values()),
    merged=_several(new_ids, old_ids, inside_new.T),
    split=_several(old_ids, new_ids, inside_old),
  )


def _several(
  wholes: Sequence[str], parts: Sequence[str], inside: np.ndarray
) -> tuple[tuple[str, tuple[str, ...]], ...]:
  return tuple(
    (whole, tuple(parts[j] for j in np.flatnonzero(row)))
    for whole, row in zip(wholes, inside)
    if row.sum() > 1
  )


def _members(
  taxonomy: Taxonomy, questions: Sequence[str], consensus: Sequence[str | None]
) -> np.ndarray:
  """bool[modes, probes]."""
  index = {m.mode_id: i for i, m in enumerate(taxonomy.modes)}
  out = np.zeros((len(index), len(questions)), bool)
  for j, mode in enumerate(taxonomy.match(questions, consensus)):
    if mode is not None:
      out[index[mode.mode_id], j] = True
  return out


def with_stability(
  taxonomy: Taxonomy,
  attempts: Sequence[Outcome],
  *,
  samples: int = 20,
  least: float = 0.5,
  seed: int = 0,
) -> Taxonomy:
  """Fills `Mode.stability`: the share of bootstrap audits that find the mode again.

  Args:
    taxonomy: as discovered on `attempts`.
    attempts: what it was discovered on.
    samples: bootstrap audits.
    least: smallest Jaccard overlap of "again".
    seed: of the resampling.
  """
  questions, consensus = [a.question for a in attempts], [a.consensus for a in attempts]
  mine = _members(taxonomy, questions, consensus)
  again = np.zeros(len(taxonomy.modes))
  rng = np.random.default_rng(seed)
  for _ in range(samples):
    drawn = rng.integers(len(attempts), size=len(attempts))
    other = discover_modes([attempts[i] for i in drawn], taxonomy.seeds, config=taxonomy.config)
    if not other.modes:
      continue
    theirs = _members(other, questions, consensus)
    shared = mine.astype(np.int64) @ theirs.T.astype(np.int64)
    union = mine.sum(axis=1)[:, None] + theirs.sum(axis=1)[None, :] - shared
    again += (shared / np.maximum(union, 1)).max(axis=1) >= least
  modes = [
    dataclasses.replace(m, stability=float(s / samples)) for m, s in zip(taxonomy.modes, again)
  ]
  return dataclasses.replace(taxonomy, modes=tuple(modes))


def same_mode(a: Mode, b: Mode) -> bool:
  """Whether two modes have the same rules, whatever their ids."""

  def rules(mode: Mode) -> list[tuple]:
    return sorted((r.skill, r.terms, r.least) for r in mode.rules)

  return rules(a) == rules(b)
