# SPDX-License-Identifier: Apache-2.0
"""A random sample of finds for people to label, in strata, whose chances are written down.

Strata are the most frequent modes and the rest, verified or not. Each gets two finds, then as many
as its size is worth (Sainte-Laguë), so that a larger sample holds the smaller one.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import heapq
from typing import Literal

from auditdm_jax.audit.attempt import Failure
from auditdm_jax.audit.probe import Record
from auditdm_jax.core import streams
from auditdm_jax.core.config import UserError

_LEAST = 2  # Finds of a stratum.
_FINDS_PER_STRATUM = 8  # Strata of their own get so many finds on average.
_OTHER = "other modes"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampled(Record):
  """A find that was drawn.

  Attributes:
    key: its probe id.
    stratum: whether it is verified, and its mode.
    draw: number of the draw, from 0 on; later ones add to earlier ones.
    drawn: finds of the stratum that this draw and those before it took.
    size: finds of the stratum.
    probability: drawn / size, the find's chance to be drawn as of this draw.
    first: whose answer is shown first.
  """

  key: str
  stratum: str
  draw: int
  drawn: int
  size: int
  probability: float
  first: Literal["consensus", "target"]


def chances(sample: Iterable[Sampled]) -> dict[str, float]:
  """Returns the chance of a find to be drawn, by stratum, as of the last draw."""
  most: dict[str, Sampled] = {}
  for row in sample:
    if row.stratum not in most or most[row.stratum].draw < row.draw:
      most[row.stratum] = row
  return {stratum: row.probability for stratum, row in most.items()}


def draw(
  failures: Sequence[Failure], *, n: int, seed: int, earlier: Sequence[Sampled] = ()
) -> list[Sampled]:
  """Draws finds in addition to those that were drawn earlier.

  Args:
    failures: all finds as verification graded them.
    n: finds wanted in all.
    seed: of the run.
    earlier: what was drawn before.

  Returns:
    The new ones in random order; none if there are `n` already, or if no find is left.

  Raises:
    UserError: the finds are others than those that were drawn from before.
  """
  named = {row.stratum for row in earlier} or _named(failures, n)
  members: dict[str, list[str]] = {}
  for f in failures:
    members.setdefault(_stratum(f, named), []).append(f.probe.probe_id)
  taken = {row.key for row in earlier}
  number = 1 + max((row.draw for row in earlier), default=-1)
  quota = allocate({name: len(keys) for name, keys in members.items()}, n)
  rows: list[Sampled] = []
  for name, keys in sorted(members.items()):
    keys.sort()
    order = streams.rng(seed, "label", "sample", name).permutation(len(keys))
    own = [keys[i] for i in order[: quota[name]]]
    before = {row.key for row in earlier if row.stratum == name}
    if not before <= set(own) and len(own) >= len(before):
      raise UserError(
        "the finds are others than those that the sample was drawn from; move the folder labels"
        " of the run away to draw a new one"
      )
    rows += [
      Sampled(
        key=key,
        stratum=name,
        draw=number,
        drawn=len(own),
        size=len(keys),
        probability=len(own) / len(keys),
        first="consensus" if streams.word(seed, "label", "first", key) % 2 else "target",
      )
      for key in own
      if key not in taken
    ]
  order = streams.rng(seed, "label", "order", number).permutation(len(rows))
  return [rows[i] for i in order]


def _kind(failure: Failure) -> str:
  return "verified" if failure.verified else "not verified"


def _stratum(failure: Failure, named: Iterable[str]) -> str:
  """The stratum of a find; modes without one of their own share one."""
  own = f"{_kind(failure)}: {failure.mode_id or 'no mode'}"
  return own if own in named else f"{_kind(failure)}: {_OTHER}"


def _named(failures: Sequence[Failure], n: int) -> set[str]:
  """The strata of the most frequent modes, as many as `n` finds can serve."""
  sizes = Counter(f"{_kind(f)}: {f.mode_id or 'no mode'}" for f in failures)
  most = sorted(sizes, key=lambda name: (-sizes[name], name))
  return set(most[: max(n // _FINDS_PER_STRATUM, 1)])


def allocate(sizes: Mapping[str, int], n: int) -> dict[str, int]:
  """Returns how many finds each stratum gives, n in all or all that there are.

  Larger n never take one from a stratum.
  """
  given = dict.fromkeys(sizes, 0)
  queue = [(float(-_LEAST), -size, name) for name, size in sizes.items() if size]
  heapq.heapify(queue)
  for _ in range(min(n, sum(sizes.values()))):
    _, minus, name = heapq.heappop(queue)
    given[name] += 1
    k = given[name]
    if k < -minus:
      # The first ones of each come before all others.
      turn = float(k - _LEAST) if k < _LEAST else (2 * k + 1) / -minus
      heapq.heappush(queue, (turn, minus, name))
  return given
