# SPDX-License-Identifier: Apache-2.0
"""One step of GRPO up to the learner's batch; the code is in the order of the steps.

  1. `draw_prompts`   (image, strategy) prompts of the step: a pure function of (seed, step).
  2. `first_turns`    encode each image once, sample G replies per prompt, image strategies first.
  3.                  parse each reply; a malformed one is the auditor's fault: reward 0, it counts.
  4.                  image strategies: the text goes to the image service the moment it is parsed.
     `second_turns`   The service's fault is nobody's: the sample is invalid. `edit` and `generate`
                      then ask about the new image.
  5. `judge`          target and references answer; the verdict says whether they disagree. Probes
                      about source images are answered while the new ones are made.
  6. `score`          verdict -> reward terms -> reward.
  7. `pack`           group advantages, and all turns as the learner's rows.

With dynamic sampling (off by default, see `rl.dynamic`) steps 1 to 6 are repeated until enough
groups are live.

Strategies: `question` (Q*, I) · `edit` (Q*, I_e) · `generate` (Q*, I_g) · `edit-only` (Q, I_e) ·
`generate-only` (Q, I_g), where Q is a question of the data set about the source image.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from auditdm_jax.audit.answer import ModelBank
from auditdm_jax.core import metrics as metrics_lib
from auditdm_jax.core.config import UserError
from auditdm_jax.rl import batch as batch_lib
from auditdm_jax.rl import flops
from auditdm_jax.rl import grpo as grpo_lib
from auditdm_jax.rl import records as records_lib
from auditdm_jax.rl import reward as reward_lib
from auditdm_jax.rl.batch import Trajectory
from auditdm_jax.rl.draws import Prompt, RolloutConfig, draw_prompts
from auditdm_jax.rl.dynamic import Carry, Group
from auditdm_jax.rl.probing import ImageClient, Pool, Prober
from auditdm_jax.rl.scoring import Scorer
from auditdm_jax.text import prompts as prompts_lib
from auditdm_jax.vlm import Vlm


class RolloutError(RuntimeError):
  """Too many samples of a step were invalid."""


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
    cfg: RolloutConfig,
    grpo: grpo_lib.GrpoConfig,
    reward: reward_lib.RewardConfig,
    *,
    auditor: Vlm,
    pool: Pool,
    bank: ModelBank,
    features: Callable[[Any, Sequence[str]], np.ndarray],
    load: Callable[[str], np.ndarray],
    keep: Callable[[np.ndarray], str],
    client: ImageClient | None = None,
    key_of: Callable[[str, str], Iterable[str]] | None = None,
    well_formed: Callable[[str], bool] | None = None,
    paraphrase: Callable[[str, int], str | None] | None = None,
    oracle: Callable[[np.ndarray, str], str | None] | None = None,
    heldout: Vlm | None = None,
    padded: Callable[[int], int] = lambda rows: rows,
    per_row: int = 1,
    pixels: Callable[[Sequence[str]], np.ndarray] | None = None,
    mesh: jax.sharding.Mesh | None = None,
  ):
    """Connects what the stage has opened.

    Args:
      cfg: prompts.
      grpo: group size, temperature, advantages.
      reward: reward terms.
      auditor: architecture, tokenizer and template; params are given to each step.
      pool: source images.
      bank: target and references.
      features: (params of the auditor, image ids) -> f32[N,patches,D] of its tower.
      load: image id -> u8[H,W,3], for pool images and made ones.
      keep: stores a made image and returns its id.
      client: the image service; needed by the image strategies.
      key_of: (question, consensus) -> keys of a find for novelty; needed if that counts kinds.
      well_formed: says whether a question is one at all (never whether it is answerable).
      paraphrase: (question, k >= 1) -> another wording or None; needed by the answerability term.
      oracle: (image, question) -> the truth or None; goes to the records only.
      heldout: a model outside the ensemble, for the gauges.
      padded: how many learner rows a part of so many must have.
      per_row: completions that share a learner row; 1 = plain rows.
      pixels: image ids -> f32[N,H,W,3], where the auditor's tower trains; None = it is frozen.
      mesh: splits the sampler's prompts.

    Raises:
      UserError: a strategy or term lacks what it needs.
    """
    if cfg.dynamic.max_age and not grpo.tis_cap:
      raise UserError(
        f"rollout.dynamic.max_age={cfg.dynamic.max_age}: carried groups are of an older auditor;"
        " set grpo.tis_cap, such as 2.0, or max_age=0"
      )
    self.config, self._grpo, self._reward = cfg, grpo, reward
    self._auditor, self._pool, self._bank, self._features = auditor, pool, bank, features
    self._padded, self._per_row, self._pixels = padded, per_row, pixels
    self._prober = Prober(
      cfg,
      auditor=auditor,
      temperature=grpo.temperature,
      pool=pool,
      features=features,
      keep=keep,
      client=client,
      well_formed=well_formed,
      mesh=mesh,
    )
    self._scorer = Scorer(
      cfg,
      reward,
      bank=bank,
      load=load,
      key_of=key_of,
      paraphrase=paraphrase,
      oracle=oracle,
      heldout=heldout,
    )
    self._carry = Carry(cfg.dynamic, cfg.counts())
    self.banned, self.novelty = self._prober.banned, self._scorer.novelty

  def step(self, params: Any, step: int) -> StepResult:
    """Steps 1 to 7 with the current params.

    Raises:
      RolloutError: too many samples are invalid.
    """
    timer = metrics_lib.Timer()
    meter = flops.Meter(self._auditor, self._bank)
    drawn: list[Trajectory] = []
    groups: list[Group] = []
    rounds, most = 0, 1 + self.config.dynamic.rounds
    while rounds < most and (not rounds or not self._carry.is_enough(groups, step)):
      prompts = draw_prompts(
        self.config.counts(), seed=self.config.seed, step=step * most + rounds, size=len(self._pool)
      )
      trajectories = self._round(params, prompts, step=step, timer=timer, meter=meter)
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
      metrics |= records_lib.agreement(full, self._bank.judge)
    with timer("gauges"):
      metrics |= self._scorer.gauges(drawn, step)
    with timer("pack"):
      chosen, counts = self._carry.fill(groups, step=step, rounds=rounds)
      batch = self.pack(params, chosen)
    return StepResult(batch, rows, metrics | counts, timer.seconds, meter.flops)

  def identity(self) -> list[Any]:
    """What decides the samples and rewards: a resumed run must have the same."""
    return [self.config, self._reward, self._bank.target, self._bank.references, len(self._pool)]

  def state(self) -> dict[str, Any]:
    """What the next steps need to know of the last ones, for the checkpoint."""
    return {"novelty": self.novelty.state(), "carried": self._carry.state()}

  def load(self, state: Mapping[str, Any]) -> None:
    """Restores `state`."""
    self.novelty.load(state["novelty"])
    self._carry.load(state["carried"])

  def _round(
    self,
    params: Any,
    prompts: Sequence[Prompt],
    *,
    step: int,
    timer: metrics_lib.Timer,
    meter: flops.Meter,
  ) -> list[Trajectory]:
    """Steps 2 to 6 for one draw of prompts."""
    begin = {"step": step, "timer": timer}
    with meter.towers("features"):
      begun = self._prober.first_turns(params, prompts, group=self._grpo.group_size, **begin)
    trajectories = begun.trajectories
    early = [i for i, t in enumerate(trajectories) if t.strategy == "question"]
    with timer("answers"), meter.towers("answers"):
      # While the image service works.
      for i, judged in zip(early, self.judge([trajectories[i] for i in early])):
        trajectories[i] = judged
    with meter.towers("features"):
      trajectories = self._prober.second_turns(params, begun, **begin)
    self.check(trajectories, step)
    with timer("answers"), meter.towers("answers"):
      trajectories = self._scorer.ask_again(self.judge(trajectories))
    meter.count(trajectories, group=self._grpo.group_size)
    return self._scorer.score(trajectories)

  def generate(
    self,
    params: Any,
    prompts: Sequence[Prompt],
    *,
    step: int,
    timer: metrics_lib.Timer,
    group: int | None = None,
  ) -> list[Trajectory]:
    """Lets the auditor make probes: steps 2 to 4.

    Args:
      params: tree of the current auditor.
      prompts: P of them; the number per strategy decides which programs are compiled.
      step: of training, for the random numbers.
      timer: counts the seconds of the phases.
      group: G; None is that of GRPO. A sweep of the pool takes 1.

    Returns:
      P·G trajectories: all samples of the first prompt, then those of the next.
    """
    group = group or self._grpo.group_size
    begun = self._prober.first_turns(params, prompts, step=step, timer=timer, group=group)
    return self._prober.second_turns(params, begun, step=step, timer=timer)

  def judge(self, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Asks target and references about every probe that came to be and has no verdict yet."""
    return self._scorer.judge(trajectories)

  def check(self, trajectories: Sequence[Trajectory], step: int) -> None:
    """Stops a run that would learn from what is left of its samples."""
    reasons = Counter(t.invalid for t in trajectories if t.invalid)
    invalid = sum(reasons.values())
    if invalid > self.config.max_invalid * len(trajectories):
      listed = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(5))
      raise RolloutError(
        f"step {step}: {invalid} of {len(trajectories)} samples are invalid, more than "
        f"{self.config.max_invalid:.0%}: {listed}"
      )

  def _records(
    self, drawn: Sequence[Trajectory], groups: Sequence[Group], step: int
  ) -> list[dict[str, Any]]:
    advantages = [a for group in groups for a in group.advantages]
    return [
      records_lib.completion(
        t, step=step, advantage=a, truth=self._scorer.truth(t), full=self._scorer.is_full(t)
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

  def pack(self, params: Any, groups: Sequence[Group]) -> batch_lib.LearnerBatch:
    """The learner's batch: first turns and, where a strategy has them, second ones.

    Rows and images have static counts.
    """
    counts, size = self.config.counts(), self._grpo.group_size
    lengths = self.config.max_new_tokens
    seconds = sum(counts[s] for s in set(counts) & prompts_lib.TWO_TURNS) * size
    firsts = sum(counts.values()) * size
    samples = [
      (turns, advantage)
      for group in groups
      for turns, advantage in zip(group.turns, group.advantages)
    ]
    images = list(dict.fromkeys(turn.image_id for turns, _ in samples for turn in turns))
    place = {image_id: i for i, image_id in enumerate(images)}

    def rows(number: int, *, capacity: int, per_row: int, completion_width: int) -> batch_lib.Rows:
      chosen = [(turns[number], a) for turns, a in samples if len(turns) > number]
      return batch_lib.pack_rows(
        [turn for turn, _ in chosen],
        [a for _, a in chosen],
        image=[place[turn.image_id] for turn, _ in chosen],
        rows=self._padded(capacity),
        prompt_width=self._prober.widths[number],
        completion_width=completion_width,
        per_row=per_row,
      )

    longest = max(lengths[prompts_lib.FIRST_TURN[s]] for s in counts)
    parts = [
      rows(0, capacity=firsts // self._per_row, per_row=self._per_row, completion_width=longest)
    ]
    if seconds:
      parts.append(rows(1, capacity=seconds, per_row=1, completion_width=lengths["question"]))
    spare = groups[0].source_image_id
    images += [spare] * (firsts // size + seconds - len(images))
    if self._pixels is not None:
      return batch_lib.LearnerBatch(None, self._pixels(images), tuple(parts))
    return batch_lib.LearnerBatch(self._features(params, images), None, tuple(parts))
