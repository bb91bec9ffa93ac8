# SPDX-License-Identifier: Apache-2.0
"""Finds with a small change as proposals of the sweep: `audit.mutating` put as probes."""

from collections.abc import Sequence
import dataclasses

from auditdm_jax.audit.attempt import Attempt, Find
from auditdm_jax.audit.mutating import Asked, Made, Mutations
from auditdm_jax.audit.probe import Probe, probe_id
from auditdm_jax.core import streams
from auditdm_jax.rl import probing
from auditdm_jax.rl.batch import Trajectory
from auditdm_jax.rl.probing import Prober
from auditdm_jax.rl.records import attempt_of
from auditdm_jax.rl.strategy import SERVED
from auditdm_jax.stages.asking import unanswered
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.pools import InMemoryPool
from auditdm_jax.stages.sections import MUTATED


class Mutants:
  """The finds of a run as parents: a pure function of (config.seed, batch) and what was asked."""

  def __init__(self, ctx: Context, pool: InMemoryPool, prober: Prober | None):
    """Takes the run, its images, and who has images made; None = nobody."""
    self._ctx, self._pool, self._prober = ctx, pool, prober
    self._numbers = {pool.image_id(i): i for i in range(len(pool))}
    self._strategies = {s.name: s for s in ctx.settings.rollout.known()}
    self._about: dict[str, Probe] = {}  # A find about each image that has one.
    read = (question for _, question in pool.asked())
    self._mutations = Mutations(read, well_formed=ctx.world.well_formed)

  def __len__(self) -> int:
    return len(self._mutations)

  def read(self, probe: Probe) -> None:
    """Takes up the words of what was asked."""
    self._mutations.read(probe.question, probe.caption or probe.instruction or "")

  def learn(self, kind: str, find: Find) -> None:
    """Takes up a find of a kind, about an image of the pool or about one made from it.

    Kinds are told apart by the consensus too: what somebody does not know is often one answer.
    """
    if find.probe.origin_id in self._numbers:
      self._about.setdefault(find.probe.image_id, find.probe)
      self._mutations.add(self._asked(find.probe), f"{kind}: {find.consensus}")

  def propose(
    self, batch: int, n: int, *, images: int, fresh: Sequence[Probe]
  ) -> list[Attempt | None]:
    """Returns at most `n` children of finds, None for an image that could not be made.

    Args:
      batch: of the sweep.
      n: how many are wanted.
      images: how many of these may be about an image that is yet to be made.
      fresh: of others, about images that were made for this batch.
    """
    rng = streams.rng(self._ctx.settings.seed, "mutations", self._ctx.round.number, batch)
    size, remade = len(self._pool), []
    if self._prober is not None:
      remade = self._mutations.remade(images, size, rng=rng)
    about = self._about | {probe.image_id: probe for probe in fresh}
    others = [self._asked(probe) for probe in fresh]
    children = self._mutations.children(n - len(remade), size, rng=rng, fresh=others)
    asked = [(child.image, child.question) for child in children if not child.made]
    again = [_again(about[child.made.image_id], child.question) for child in children if child.made]
    plain = unanswered(self._ctx, self._pool, asked, arm=MUTATED)
    return [*plain, *again, *self._drawn(batch, remade)]

  def _asked(self, probe: Probe) -> Asked:
    return Asked(self._numbers[probe.origin_id], probe.question, self._made(probe))

  def _made(self, probe: Probe) -> Made | None:
    """How the image of a probe was made; None for one of the pool."""
    makes = self._strategies[probe.strategy].makes
    if not makes or probe.image_id == probe.origin_id:
      return None
    text = probe.caption if makes == "generate" else probe.instruction
    return Made(probe.strategy, makes == "edit", text or "", probe.seed, probe.image_id)

  def _drawn(self, batch: int, children: Sequence[Asked]) -> list[Attempt | None]:
    """Has the images of children made."""
    if not children or self._prober is None:
      return []
    asked = [
      Trajectory(
        walk=("mutated", self._ctx.round.number, batch),
        prompt_id=i,
        sample=0,
        strategy=made.strategy,
        source_image_id=self._pool.image_id(child.image),
        fields={SERVED["edit" if made.edits else "generate"]: made.text},
        image_seed=made.seed,
        question=child.question,
      )
      for i, child in enumerate(children)
      if (made := child.made)
    ]
    done = self._prober.draw(asked, [child.image for child in children])
    probing.check_valid(done, self._prober.config.max_invalid, step=batch)
    return [None if t.malformed or t.invalid else attempt_of(t, arm=MUTATED) for t in done]


def _again(probe: Probe, question: str) -> Attempt:
  """Another question about an image that was made before."""
  probe = dataclasses.replace(
    probe,
    probe_id=probe_id(probe.image_id, question),
    question=question,
    arm=MUTATED,
    way="",
    score=None,
  )
  return Attempt(probe=probe, verdict=None)
