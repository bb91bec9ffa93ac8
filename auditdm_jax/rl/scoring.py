# SPDX-License-Identifier: Apache-2.0
"""Steps 5 and 6 of a rollout: probes are answered, answers are judged, verdicts become rewards."""

from collections.abc import Callable, Iterable, Sequence
import dataclasses

import numpy as np

from auditdm_jax.audit.answer import ModelBank, unsure_at
from auditdm_jax.audit.attempt import Find, is_true
from auditdm_jax.audit.verdict import consensus_of
from auditdm_jax.core import streams
from auditdm_jax.core.config import UserError
from auditdm_jax.rl import reward as reward_lib
from auditdm_jax.rl.batch import Trajectory
from auditdm_jax.rl.draws import RolloutConfig
from auditdm_jax.rl.records import attempt_of


class Scorer:
  """Rewards probes."""

  def __init__(
    self,
    config: RolloutConfig,
    reward: reward_lib.RewardConfig,
    *,
    bank: ModelBank,
    load: Callable[[str], np.ndarray],
    key_of: Callable[[str, str], Iterable[str]] | None = None,
    paraphrase: Callable[[str, int], str | None] | None = None,
    oracle: Callable[[np.ndarray, str], str | None] | None = None,
  ):
    """Connects the models that answer.

    Args:
      config: who is asked in a cascade.
      reward: terms and novelty.
      bank: target and references.
      load: image id -> u8[H,W,3], for pool images and made ones.
      key_of: (question, consensus) -> keys of a find for novelty; needed if that counts kinds.
      paraphrase: (question, k >= 1) -> another wording or None; needed by answerability.
      oracle: (image, question) -> the truth or None; goes to the records only.

    Raises:
      UserError: a term or novelty lacks what it needs.
    """
    if reward.novelty in ("archive", "ema") and key_of is None:
      raise UserError("reward.novelty needs keys of finds, which this world does not define")
    if reward.answerability and paraphrase is None:
      raise UserError("reward.answerability needs paraphrases, which this world does not define")
    self.bank, self.reward = bank, reward
    self._config, self._load = config, load
    self._key_of, self._paraphrase, self._oracle = key_of, paraphrase, oracle
    self._terms = reward_lib.terms_of(reward)
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
    if not self.bank.config.cascade:
      return True
    t = trajectory
    lot = streams.word(self._config.seed, "full", *t.walk, t.prompt_id, t.sample)
    return lot < self._config.full_share * 2**32

  def _judged(
    self, result: list[Trajectory], rows: Sequence[int], *, cascade: bool
  ) -> list[Trajectory]:
    """`result` with verdicts in these rows."""
    if rows:
      asked = [result[i] for i in rows]
      verdicts = self.bank.verdicts(
        self._load,
        [t.question for t in asked],
        image_ids=[t.image_id for t in asked],
        cascade=cascade,
      )
      for i, verdict in zip(rows, verdicts):
        result[i] = dataclasses.replace(result[i], verdict=verdict)
    return result

  def ask_again(self, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Asks the references about a paraphrase of each find: do they keep their consensus?"""
    result = list(trajectories)
    if not self.reward.answerability or self._paraphrase is None:
      return result
    found = {i: self._paraphrase(t.question, 1) for i, t in enumerate(result) if find_of(t)}
    texts = {i: text for i, text in found.items() if text is not None}
    rows = list(texts)
    if not rows:
      return result
    heard = self.bank.hear(
      self._load,
      list(texts.values()),
      image_ids=[result[i].image_id for i in rows],
      models=self.bank.references,
    )
    answers = {name: [a.text if a else "" for a in own] for name, own in heard.items()}
    judge, rule = self.bank.judge, self.bank.config.rule
    judge.prepare(
      (result[i].question, result[i].consensus, said[k])
      for k, i in enumerate(rows)
      for said in answers.values()
    )
    for k, i in enumerate(rows):
      said, question = {name: own[k] for name, own in answers.items()}, result[i].question
      unsure = unsure_at(heard, k)
      again = consensus_of(said, judge, rule=rule, question=question, unsure=unsure)
      kept = again is not None and judge.same(result[i].consensus, again, question=question)
      result[i] = dataclasses.replace(result[i], kept=kept)
    return result

  def score(self, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Evaluates reward terms, rewards, and novelty weights by the finds of the steps before."""
    result = []
    for t in trajectories:
      parts = reward_lib.evaluate(self._terms, facts_of(t))
      reward = float("nan") if t.invalid else reward_lib.total(self._terms, parts)
      find = find_of(t)
      weight = self.novelty.weight(self._keys(find)) if find else 1.0
      result.append(dataclasses.replace(t, parts=parts, reward=reward, weight=weight))
    return result

  def count(self, drawn: Sequence[Trajectory]) -> None:
    """Adds the finds of a step to the archive of novelty."""
    self.novelty.update([self._keys(find) for t in drawn if (find := find_of(t))])

  def _keys(self, find: Find) -> tuple[str, ...]:
    """What novelty compares a find by."""
    if self.reward.novelty == "text":
      return (find.probe.question,)
    if self._key_of is None:
      return ()
    return tuple(self._key_of(find.probe.question, find.consensus))

  def truth(self, trajectory: Trajectory) -> bool | None:
    """Whether the oracle confirms a find; None without an oracle. For the records only."""
    if self._oracle is None:
      return None
    find = find_of(trajectory)
    if find is None:
      return False
    answer = self._oracle(self._load(find.probe.image_id), find.probe.question)
    return is_true(find, answer, self.bank.judge)


def find_of(trajectory: Trajectory) -> Find | None:
  """Returns the find that a trajectory is, or None."""
  return attempt_of(trajectory).find


def facts_of(trajectory: Trajectory) -> reward_lib.Facts:
  """Returns what the reward terms may know."""
  t = trajectory
  return reward_lib.Facts(
    strategy=t.strategy,
    source_image_id=t.source_image_id,
    image_id=t.image_id,
    question=t.question,
    texts=t.fields,
    tokens=tuple(int(x) for turn in t.turns for x in turn.tokens[: turn.length]),
    parsed=not t.malformed,
    verdict=t.verdict,
    find=find_of(t) is not None,
    kept=t.kept,
  )
