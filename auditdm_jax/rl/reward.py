# SPDX-License-Identifier: Apache-2.0
"""Reward terms are functions (facts of a completion) -> number; each is logged under its name.

The default is the binary signal of AuditDM: 1 when the reply parses, the references agree on an
answer and the target says something else. Every other term has weight 0 unless a config says more.
A term of your own is a function like those below and a line of the config, which names it by its
import path: `reward.terms=(("my_module:brevity", 0.5),)`. No term knows the oracle
of a synthetic world.

Novelty is a weight on the reward of a find, by the inverse frequency of its key among the finds so
far, or by how far its text is from theirs. It enters after the advantages were scaled by the std of
the unweighted reward (see `grpo.advantages`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import functools
import math
from typing import Any

from auditdm_jax.audit.probe import Verdict
from auditdm_jax.core.config import UserError, check, load_function

NOVELTY_MODES = ("off", "archive", "ema", "text")
_ARCHIVE = 4096  # texts that novelty compares with: the latest


@dataclasses.dataclass(frozen=True)
class RewardConfig:
  """Which terms make the reward.

  Attributes:
    novelty: "off", "archive" (counts since the start), "ema" (counts that fade) or "text" (distance
      to the nearest question that was a find).
    novelty_power: exponent of the inverse frequency, or of the distance.
    novelty_low: least weight of a find.
    novelty_high: greatest weight of a find.
    novelty_decay: per-step factor on the counts of "ema".
    answerability: share of its reward that a find loses whose references do not keep their
      consensus over a paraphrase of the question.
    repetition: penalty for the share of repeated n-grams.
    length: penalty for the share of tokens above `length_limit`.
    length_limit: in tokens.
    terms: (import path of a term, its weight in the reward), for terms outside the package.
  """

  novelty: str = "off"
  novelty_power: float = 1.0
  novelty_low: float = 0.1
  novelty_high: float = 3.0
  novelty_decay: float = 0.9
  answerability: float = 0.0
  repetition: float = 0.0
  length: float = 0.0
  length_limit: int = 64
  terms: tuple[tuple[str, float], ...] = ()

  def __post_init__(self):
    if self.novelty not in NOVELTY_MODES:
      raise ValueError(
        f"reward.novelty={self.novelty!r}: must be one of {', '.join(NOVELTY_MODES)}"
      )
    if not 0 < self.novelty_low <= self.novelty_high:
      raise ValueError("reward.novelty_low must be above 0 and at most novelty_high")
    if not 0 <= self.novelty_decay < 1:
      raise ValueError(f"reward.novelty_decay={self.novelty_decay}: must be in [0, 1)")
    if not 0 <= self.answerability <= 1:
      raise ValueError(f"reward.answerability={self.answerability}: a share, from 0 to 1")
    check(vars(self), "reward", "novelty_power", "repetition", "length", least=0)
    check(vars(self), "reward", "length_limit", least=1)
    names = [term.name for term in terms_of(self)]
    if twice := [name for name in names if names.count(name) > 1]:
      raise UserError(f"reward.terms: two terms are called {twice[0]!r}")


@dataclasses.dataclass(frozen=True)
class Facts:
  """What a reward term may know of a completion.

  Attributes:
    strategy: name of the strategy that its prompt is of.
    source_image_id: the image of the prompt.
    image_id: the image of the probe; "" if it never came to be.
    question: the question of the probe; "" if it never came to be.
    texts: what the auditor wrote, by kind.
    tokens: ids of all that it wrote, terminators included.
    parsed: False for a malformed completion, which has no verdict.
    verdict: the models' answers and what follows from them; None if they were not asked.
    find: whether the target conflicts with the references' consensus.
    kept: whether the references keep their consensus over a paraphrase; None if nobody asked.
  """

  strategy: str = ""
  source_image_id: str = ""
  image_id: str = ""
  question: str = ""
  texts: Mapping[str, str] = dataclasses.field(default_factory=dict)
  tokens: tuple[int, ...] = ()
  parsed: bool = True
  verdict: Verdict | None = None
  find: bool = False
  kept: bool | None = None


# A value of None is that of a completion which the term is not about.
Term = Callable[[Facts], float | None]


def disagreement(facts: Facts) -> float:
  """AuditDM's signal: 1 iff the reply parsed, and the target conflicts with a consensus."""
  return float(facts.parsed and facts.find)


def validity(facts: Facts) -> float:
  """1 iff the references agree on an answer, find or not; for `reward.terms`.

  After the validity of arXiv:2604.04733; that the references' agreement decides is ours.
  """
  return float(facts.verdict is not None and facts.verdict.consensus is not None)


def answerability(facts: Facts) -> float | None:
  """1 iff all references say over a paraphrase what they agreed on before."""
  return None if facts.kept is None else float(facts.kept)


def repetition(facts: Facts, *, n: int = 3) -> float:
  """Share of n-grams that occurred before in the same completion, in [0, 1)."""
  grams = [facts.tokens[i : i + n] for i in range(len(facts.tokens) - n + 1)]
  return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def length(facts: Facts, *, limit: int) -> float:
  """Tokens (never characters) above the limit, as a share of the limit."""
  return max(0, len(facts.tokens) - limit) / max(limit, 1)


@dataclasses.dataclass(frozen=True)
class Weighted:
  """A term in a reward, to which it adds weight * (value - neutral).

  Attributes:
    name: in records and metrics.
    term: the function.
    weight: negative for a penalty.
    neutral: the value that adds nothing.
  """

  name: str
  term: Term
  weight: float
  neutral: float = 0.0


@functools.lru_cache(maxsize=64)
def terms_of(config: RewardConfig) -> tuple[Weighted, ...]:
  """Returns the terms of the reward, those of the config's import paths last."""
  own = [
    Weighted(path.partition(":")[2], load_function(path, where="reward.terms"), weight)
    for path, weight in config.terms
  ]
  return (
    Weighted("disagreement", disagreement, 1.0),
    # Where nobody asked whether a question is answerable, it is taken for it.
    Weighted("answerability", answerability, config.answerability, neutral=1.0),
    Weighted("repetition", repetition, -config.repetition),
    Weighted("length", functools.partial(length, limit=config.length_limit), -config.length),
    *own,
  )


def evaluate(terms: Sequence[Weighted], facts: Facts) -> dict[str, float]:
  """Returns the values of the terms that are about this completion.

  Raises:
    UserError: a value is not a finite number.
  """
  parts = {}
  for each in terms:
    value = each.term(facts)
    if value is None:
      continue
    if not isinstance(value, float | int) or not math.isfinite(value):
      raise UserError(f"reward term {each.name!r} is {value!r}: must be a finite number, or None")
    parts[each.name] = float(value)
  return parts


def total(terms: Sequence[Weighted], parts: Mapping[str, float]) -> float:
  """Returns the reward, the weighted sum of the terms that have a value."""
  reward = 0.0
  for each in terms:
    if each.name in parts:
      reward += each.weight * (parts[each.name] - each.neutral)
  return reward


def text_distance(a: frozenset[str], b: frozenset[str]) -> float:
  """Jaccard distance of two sets of features of `features_of`, in [0, 1]."""
  return 1.0 - len(a & b) / len(a | b) if a or b else 0.0


def features_of(text: str) -> frozenset[str]:
  """The words of a text and the pairs of neighbours among them."""
  words = text.lower().split()
  return frozenset(words) | {f"{a} {b}" for a, b in zip(words, words[1:])}


class Novelty:
  """How much a find is worth, by the finds before it.

  "archive" and "ema": a find has one or more keys, for instance (skill, answer) or its slot values;
  the most frequent one decides, with the mean over the keys seen so far:

    weight = clip(((mean count + 1) / (count of the key + 1)) ** power, low, high)

  "text" (ours): the key is the question itself, and what counts is the distance d in [0, 1] to the
  nearest question of the archive:

    weight = low + (high - low) * d ** power

  The first step has weight 1 everywhere.
  """

  def __init__(self, config: RewardConfig):
    self._config = config
    self._counts: dict[str, float] = {}  # by key; in "text" mode which find it was last
    self._features: dict[str, frozenset[str]] = {}

  def weight(self, keys: Iterable[str]) -> float:
    """Weight of a find with these keys, by the finds before this step."""
    config, keys = self._config, tuple(keys)
    if config.novelty == "off" or not self._counts or not keys:
      return 1.0
    if config.novelty == "text":
      distance = max(self._distance(key) for key in keys)
      return (
        config.novelty_low
        + (config.novelty_high - config.novelty_low) * distance**config.novelty_power
      )
    mean = math.fsum(self._counts.values()) / len(self._counts)  # the same in any order
    count = max(self._counts.get(key, 0.0) for key in keys)
    weight = ((mean + 1.0) / (count + 1.0)) ** config.novelty_power
    return min(max(weight, config.novelty_low), config.novelty_high)

  def update(self, finds: Iterable[Iterable[str]]) -> None:
    """Adds the finds of a step, in their order."""
    if self._config.novelty == "off":
      return
    if self._config.novelty == "text":
      self._remember([key for keys in finds for key in keys])
      return
    if self._config.novelty == "ema":
      faded = {key: count * self._config.novelty_decay for key, count in self._counts.items()}
      self._counts = {key: count for key, count in faded.items() if count > 1e-3}
    for keys in finds:
      for key in keys:
        self._counts[key] = self._counts.get(key, 0.0) + 1.0

  def state(self) -> dict[str, Any]:
    """For the checkpoint; survives JSON bit for bit."""
    return {"counts": dict(self._counts)}

  def load(self, state: Mapping[str, Any]) -> None:
    """Restores `state`."""
    self._counts = {str(key): float(count) for key, count in state["counts"].items()}
    self._features = {}

  def _distance(self, text: str) -> float:
    if text in self._counts:
      return 0.0
    mine = features_of(text)
    for other in self._counts:
      if other not in self._features:
        self._features[other] = features_of(other)
    return min(text_distance(mine, self._features[other]) for other in self._counts)

  def _remember(self, texts: Sequence[str]) -> None:
    """Adds questions and forgets all but the latest."""
    last = max(self._counts.values(), default=0.0)
    for number, text in enumerate(texts, start=1):
      self._counts[text] = last + number
    for text in sorted(self._counts, key=self._counts.__getitem__)[:-_ARCHIVE]:
      del self._counts[text]
      self._features.pop(text, None)
