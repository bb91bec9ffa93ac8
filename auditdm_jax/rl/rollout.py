# SPDX-License-Identifier: Apache-2.0
"""One step of GRPO up to the learner's batch; the code is in the order of the steps.

  1. `draw_prompts`   (image, strategy) prompts of the step: a pure function of (seed, run, step).
  2. `first_turns`    encode each image once, sample G replies per prompt, image strategies first.
  3.                  parse each reply; a malformed one is the auditor's fault: reward 0, it counts.
                      With a surrogate, more are sampled and G of them kept (`rl.picking`).
  4.                  image strategies: the text goes to the image service the moment it is parsed.
     `second_turns`   The service's fault is nobody's: the sample is invalid. `edit` and `generate`
                      then ask about the new image.
  5. `judge`          target and references answer; the verdict says whether they disagree. Probes
                      about source images are answered while the new ones are made.
  6. `score`          verdict -> reward terms -> reward.
  7. `pack`           group advantages, and all turns as the learner's rows.

With dynamic sampling (off by default, see `rl.dynamic`) steps 1 to 6 are repeated until enough
groups are live. What the strategies are is in `rl.strategy`.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from auditdm_jax.core import metrics as metrics_lib
from auditdm_jax.core.config import UserError
from auditdm_jax.rl import batch as batch_lib
from auditdm_jax.rl import flops, picking, probing, shapes
from auditdm_jax.rl import grpo as grpo_lib
from auditdm_jax.rl import records as records_lib
from auditdm_jax.rl.batch import Trajectory
from auditdm_jax.rl.draws import AuditorPrompt, draw_prompts
from auditdm_jax.rl.dynamic import Carry, Group
from auditdm_jax.rl.gauges import Gauges
from auditdm_jax.rl.packing import Packer
from auditdm_jax.rl.probing import Prober
from auditdm_jax.rl.scoring import Scorer, find_of


@dataclasses.dataclass(frozen=True)
class StepResult:
  """What a step hands on: to the learner, to the store, to the log.

  Attributes:
    batch: for the learner.
    records: one per completion that was drawn.
    metrics: what the step was like; a function of the run's settings.
    seconds: per phase.
    flops: useful floating-point operations per phase.
  """

  batch: batch_lib.LearnerBatch
  records: list[dict[str, Any]]
  metrics: dict[str, float]
  seconds: dict[str, float]
  flops: dict[str, float]


class Rollout:
  """Makes probes with the auditor and rewards them."""

  def __init__(
    self,
    grpo: grpo_lib.GrpoConfig,
    *,
    run: str,
    prober: Prober,
    scorer: Scorer,
    packer: Packer,
    gauges: Gauges | None = None,
    before: Any = None,
  ):
    """Connects the phases of a step.

    Args:
      grpo: group size and advantages.
      run: name of the training run, which its randomness depends on.
      prober: steps 2 to 4.
      scorer: steps 5 and 6.
      packer: step 7.
      gauges: watch for reward hacking.
      before: params of the auditor before training, placed as the current ones; needed where it
        writes a share of the proposals.

    Raises:
      UserError: carried groups or proposals of another auditor need a correction that is off, or
        there are fewer proposals than are to be kept.
    """
    self.config = prober.config
    surrogate = self.config.surrogate
    untrained = surrogate.untrained if surrogate.proposals else 0
    if untrained and not grpo.tis_cap:
      raise UserError(
        f"rollout.surrogate.untrained={untrained}: these are of an older auditor; set"
        " grpo.tis_cap, such as 2.0, or untrained=0"
      )
    self._coauthor = probing.Coauthor(before, untrained) if untrained else None
    if self.config.dynamic.max_age and not grpo.tis_cap:
      raise UserError(
        f"rollout.dynamic.max_age={self.config.dynamic.max_age}: carried groups are of an older"
        " auditor; set grpo.tis_cap, such as 2.0, or max_age=0"
      )
    if 0 < (proposals := surrogate.proposals) < grpo.group_size:
      raise UserError(
        f"rollout.surrogate.proposals={proposals}: must be at least"
        f" grpo.group_size={grpo.group_size}, or 0 for no surrogate"
      )
    self._picker: picking.Picker | None = None
    if proposals:
      self._picker = picking.Picker(
        surrogate,
        look=prober.sight.before,
        seed=self.config.seed,
        reader=prober.sight.reader,
      )
    self._grpo, self._run, self._gauges = grpo, run, gauges
    self._prober, self._scorer, self._packer = prober, scorer, packer
    self._carry = Carry(self.config.dynamic, self.config.counts())
    self._early = {s.name for s, _ in self.config.active() if shapes.is_early(s)}

  def step(self, params: Any, step: int) -> StepResult:
    """Steps 1 to 7 with the current params.

    Raises:
      RolloutError: too many samples are invalid.
    """
    timer = metrics_lib.Timer()
    meter = flops.Meter(self._prober.sampler.auditor, self._scorer.bank)
    drawn: list[Trajectory] = []
    groups: list[Group] = []
    rounds, most = 0, 1 + self.config.dynamic.rounds
    while rounds < most and (not rounds or not self._carry.is_enough(groups, step)):
      prompts = draw_prompts(
        self.config.sampled(),
        seed=self.config.seed,
        walk=(self._run,),
        step=step * most + rounds,
        size=len(self._prober.pool),
      )
      trajectories = self._draw(params, prompts, step=step, timer=timer, meter=meter)
      groups += self._groups(trajectories, step)
      drawn += trajectories
      rounds += 1
    self._scorer.count(drawn)
    with timer("records"):
      rows = self._records(drawn, groups, step)
      metrics = records_lib.metrics(rows, group_size=self._grpo.group_size)
      full = [
        (t.question, t.verdict) for t in drawn if t.verdict is not None and self._scorer.is_full(t)
      ]
      metrics |= records_lib.agreement(full, self._scorer.bank.judge)
    if self._picker is not None:
      metrics |= picking.metrics(drawn)
      with timer("surrogate"):
        self._picker.learn(drawn, self._run, step)
      meter.flops["surrogate"] = self._picker.flops(drawn)
    if self._gauges is not None:
      finds = [t for t in drawn if find_of(t)]
      with timer("gauges"):
        metrics |= self._gauges.look(finds, walk=(self._run,), step=step)
    with timer("pack"):
      chosen, counts = self._carry.fill(groups, step=step, rounds=rounds)
      batch = self._packer.pack(params, chosen)
    return StepResult(batch, rows, metrics | counts, timer.seconds, meter.flops)

  def identity(self) -> list[Any]:
    """What decides the samples and rewards: a resumed run must have the same."""
    bank = self._scorer.bank
    return [self.config, self._scorer.reward, bank.target, bank.references, len(self._prober.pool)]

  def state(self) -> dict[str, Any]:
    """What the next steps need to know of the last ones, for the checkpoint."""
    return {
      "novelty": self._scorer.novelty.state(),
      "carried": self._carry.state(),
      "surrogate": None if self._picker is None else self._picker.state(),
    }

  def load(self, state: Mapping[str, Any]) -> None:
    """Restores `state`."""
    self._scorer.novelty.load(state["novelty"])
    self._carry.load(state["carried"])
    if self._picker is not None:
      self._picker.load(state["surrogate"])

  def _draw(
    self,
    params: Any,
    prompts: Sequence[AuditorPrompt],
    *,
    step: int,
    timer: metrics_lib.Timer,
    meter: flops.Meter,
  ) -> list[Trajectory]:
    """Steps 2 to 6 for one draw of prompts."""
    with meter.towers("features"):
      begun = self._prober.first_turns(
        params,
        prompts,
        group=self._grpo.group_size,
        timer=timer,
        chooser=self._picker,
        coauthor=self._coauthor,
      )
    meter.proposed(
      begun.dropped,
      asked={t.prompt_id for t in begun.trajectories},
      authors=1 if self._coauthor is None else 2,
    )
    trajectories = begun.trajectories
    early = [i for i, t in enumerate(trajectories) if t.strategy in self._early]
    with timer("answers"), meter.towers("answers"):
      # While the image service works.
      for i, judged in zip(early, self._scorer.judge([trajectories[i] for i in early])):
        trajectories[i] = judged
    with meter.towers("features"):
      trajectories = self._prober.second_turns(params, begun, timer=timer)
    probing.check_valid(trajectories, self.config.max_invalid, step=step)
    with timer("answers"), meter.towers("answers"):
      trajectories = self._scorer.ask_again(self._scorer.judge(trajectories))
    meter.count(trajectories)
    return self._scorer.score(trajectories)

  def _records(
    self, drawn: Sequence[Trajectory], groups: Sequence[Group], step: int
  ) -> list[dict[str, Any]]:
    advantages = [a for group in groups for a in group.advantages]
    return [
      records_lib.completion(
        t,
        arm=self._run,
        step=step,
        advantage=a,
        truth=self._scorer.truth(t),
        full=self._scorer.is_full(t),
      )
      for t, a in zip(drawn, advantages, strict=True)
    ]

  def _groups(self, trajectories: Sequence[Trajectory], step: int) -> list[Group]:
    """The samples of each prompt with their advantages."""
    size = self._grpo.group_size
    advantages = grpo_lib.advantages(
      np.array([t.reward for t in trajectories]).reshape(-1, size),
      std=self._grpo.std,
      eps=self._grpo.std_eps,
      weights=np.array([t.weight for t in trajectories]).reshape(-1, size),
    )
    return [
      Group(
        strategy=trajectories[i * size].strategy,
        source_image_id=trajectories[i * size].source_image_id,
        step=step,
        turns=tuple(() if t.invalid else t.turns for t in trajectories[i * size : i * size + size]),
        advantages=tuple(map(float, row)),
      )
      for i, row in enumerate(advantages)
    ]
