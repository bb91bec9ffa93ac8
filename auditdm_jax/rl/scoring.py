# SPDX-License-Identifier: Apache-2.0
"""Steps 5 and 6 of a rollout: probes are answered, answers are judged, verdicts become rewards."""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import functools

import numpy as np

from auditdm_jax.audit.answer import ModelBank
from auditdm_jax.core.config import UserError
from auditdm_jax.rl import gauges
from auditdm_jax.rl import reward as reward_lib
from auditdm_jax.rl.batch import Trajectory
from auditdm_jax.rl.draws import RolloutConfig, draw_seed
from auditdm_jax.vlm import Vlm


class Scorer:
  """Rewards probes."""

  def __init__(
    self,
    cfg: RolloutConfig,
    reward: reward_lib.RewardConfig,
    *,
    bank: ModelBank,
    load: Callable[[str], np.ndarray],
    key_of: Callable[[str, str], Iterable[str]] | None,
    paraphrase: Callable[[str, int], str | None] | None,
    oracle: Callable[[np.ndarray, str], str | None] | None,
    heldout: Vlm | None,
  ):
    """Takes what `Rollout` is given."""
    if reward.novelty in ("archive", "ema") and key_of is None:
      raise UserError("reward.novelty needs keys of finds, which this world does not define")
    if reward.answerability and paraphrase is None:
      raise UserError("reward.answerability needs paraphrases, which this world does not define")
    self._config, self._reward, self._bank, self._load = cfg, reward, bank, load
    self._key_of, self._paraphrase = key_of, paraphrase
    self._oracle, self._heldout = oracle, heldout
    self.novelty = reward_lib.Novelty(reward)

  def judge(self, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Asks target and references about every probe that came to be and has no verdict yet."""
    result = list(trajectories)
    rows = [
      i
      for i, t in enumerate(trajectories)
      if not t.malformed and not t.invalid and t.verdict is None
    ]
    full = [i for i in rows if self.is_full(trajectories[i])]
    rest = [i for i in rows if not self.is_full(trajectories[i])]
    return self._judged(self._judged(result, full, cascade=False), rest, cascade=True)

  def is_full(self, trajectory: Trajectory) -> bool:
    """Whether all models are asked about its probe: always, or in a cascade by lot."""
    if not self._bank.config.cascade:
      return True
    draw = draw_seed(self._config.seed, trajectory.prompt_id, trajectory.sample, 1)
    return draw < self._config.full_share * 2**32

  def _judged(
    self, result: list[Trajectory], rows: Sequence[int], *, cascade: bool
  ) -> list[Trajectory]:
    """`result` with verdicts in these rows."""
    if rows:
      asked = [result[i] for i in rows]
      verdicts = self._bank.verdicts(
        self._load,
        [t.question for t in asked],
        image_ids=[t.image_id for t in asked],
        cascade=cascade,
      )
      for i, verdict in zip(rows, verdicts):
        result[i] = dataclasses.replace(result[i], verdict=verdict)
    return result

  def ask_again(self, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """The answerability of finds: do the references keep their consensus over a paraphrase?"""
    result = list(trajectories)
    if not self._reward.answerability:
      return result
    texts = {i: self._paraphrase(t.question, 1) for i, t in enumerate(result) if is_find(t)}
    rows = [i for i, text in texts.items() if text is not None]
    answers: dict[str, list[str]] = {}
    if rows:
      answers = self._bank.answers(
        self._load,
        [texts[i] for i in rows],
        image_ids=[result[i].image_id for i in rows],
        models=self._bank.references,
      )
    judge = self._bank.judge
    judge.prepare(
      (result[i].question, result[i].verdict.consensus, a[k])
      for k, i in enumerate(rows)
      for a in answers.values()
    )
    for k, i in enumerate(rows):
      kept = reward_lib.answerability(
        result[i].verdict.consensus,
        [a[k] for a in answers.values()],
        same=functools.partial(judge.same, question=result[i].question),
      )
      result[i] = dataclasses.replace(result[i], parts={"answerability": kept})
    return result

  def score(self, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Reward terms, rewards, and novelty weights by the finds of the steps before."""
    result = []
    for trajectory in trajectories:
      tokens = [int(x) for turn in trajectory.turns for x in turn.tokens[: turn.length]]
      find = is_find(trajectory)
      parts = {
        "disagreement": reward_lib.disagreement(parsed=not trajectory.malformed, disagrees=find),
        "repetition": reward_lib.repetition(tokens),
        "length": reward_lib.length(len(tokens), limit=self._reward.length_limit),
      }
      parts |= trajectory.parts
      reward = float("nan") if trajectory.invalid else reward_lib.total(self._reward, parts)
      weight = self.novelty.weight(self._keys(trajectory)) if find else 1.0
      result.append(dataclasses.replace(trajectory, parts=parts, reward=reward, weight=weight))
    return result

  def count(self, drawn: Sequence[Trajectory]) -> None:
    """Adds the finds of a step to the archive of novelty."""
    self.novelty.update([self._keys(t) for t in drawn if is_find(t)])

  def _keys(self, find: Trajectory) -> tuple[str, ...]:
    """What novelty compares a find by."""
    if self._reward.novelty == "text":
      return (find.question,)
    if self._key_of is None:
      return ()
    return tuple(self._key_of(find.question, find.verdict.consensus))

  def gauges(self, drawn: Sequence[Trajectory], step: int) -> dict[str, float]:
    """See `rl.gauges`; in most steps nothing."""
    cfg = self._config.gauges
    if not cfg.every or step % cfg.every:
      return {}
    finds = [t for t in drawn if is_find(t)]
    order = np.random.default_rng((self._config.seed, step)).permutation(len(finds))
    sample = [finds[i] for i in order[: cfg.sample]]
    return gauges.measure(self._bank, sample, load=self._load, heldout=self._heldout)

  def truth(self, trajectory: Trajectory) -> bool | None:
    """Whether the oracle confirms a find; None without an oracle. For the records only."""
    if self._oracle is None:
      return None
    if not is_find(trajectory):
      return False
    verdict = trajectory.verdict
    answer = self._oracle(self._load(trajectory.image_id), trajectory.question)
    same = functools.partial(self._bank.judge.same, question=trajectory.question)
    return (
      answer is not None
      and same(answer, verdict.consensus)
      and not same(answer, verdict.answers[verdict.target])
    )


def is_find(trajectory: Trajectory) -> bool:
  """Whether the target conflicts with the references' consensus."""
  return trajectory.verdict is not None and trajectory.verdict.disagreement
