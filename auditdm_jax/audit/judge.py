# SPDX-License-Identifier: Apache-2.0
"""The judge D: do two short answers mean the same? Rules first, a language model only if given.

The rules say "same" only where it is certain (`judging.compare`). A model is asked where they do
not, and only if both answers say something; where its two orders contradict each other the pair is
undecided, which is neither a consensus nor a disagreement. Rules of your own are a function, which
the config names by its import path: `judge.rules="my_module:same"`.
"""

from collections.abc import Iterable, Mapping
import dataclasses
from fractions import Fraction
import functools
import os

from auditdm_jax.audit.judging import tables
from auditdm_jax.audit.judging.compare import Same, compare
from auditdm_jax.audit.judging.model import ModelJudge, Pair, TextModel
from auditdm_jax.audit.judging.normal import read
from auditdm_jax.core import jsonl
from auditdm_jax.core.config import UserError, check, load_function

__all__ = ["Judge", "JudgeConfig", "Same", "open_judge"]

_RULES = "config.judge.rules"
# What asks for a text and not for yes or no: there `Yes, we are open` is more than `yes`.
_ASKS_FOR_TEXT = frozenset("what what's which who who's whose whom where when why how".split())


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
  """Rules that a task may want otherwise, and the model that is asked beyond them.

  Attributes:
    relative_tolerance: for numbers that are not small counts (ChartQA uses 0.05).
    exact_below: integers below this must be equal whatever the tolerance.
    units_optional: `5 cm` equals `5` (but never `5 m`).
    plurals: `two dogs` equals `two dog`.
    synonyms: YAML file of synonyms and kinds in addition to the package's, in the form of
      `judging/words.yaml`; "" = none.
    model: folder or endpoint of a model that answers prompts without images, asked where the rules
      do not say "same"; "" = none.
    max_new_tokens: of a reply of this model.
    allow_same: the model may be the target, a reference or the auditor, which then judges itself.
    rules: import path of a function in place of the rules: (question, answer, answer) -> True for
      the same, False for others, None for undecided. It is asked about answers that say something
      and are not equal; "" = the rules above.
  """

  relative_tolerance: float = 0.0
  exact_below: int = 20
  units_optional: bool = True
  plurals: bool = True
  synonyms: str = ""
  model: str = ""
  max_new_tokens: int = 8
  allow_same: bool = False
  rules: str = ""

  def __post_init__(self):
    check(vars(self), "judge", "relative_tolerance", "exact_below", least=0)
    check(vars(self), "judge", "max_new_tokens", least=1)

  def close(self, a: Fraction, b: Fraction) -> bool:
    """Whether two numbers that are not equal are within the tolerance."""
    counts = a.denominator == b.denominator == 1 and max(abs(a), abs(b)) < self.exact_below
    if counts or not self.relative_tolerance:
      return False
    return abs(a - b) <= Fraction(self.relative_tolerance) * max(abs(a), abs(b))


@dataclasses.dataclass(frozen=True)
class Judge:
  """Deterministic rules, then an optional model asked in both orders.

  Attributes:
    config: the rules.
    model: consulted where the rules do not say "same"; None = the rules alone.
  """

  config: JudgeConfig = JudgeConfig()
  model: ModelJudge | None = None

  def __post_init__(self):
    if self.config.model and self.model is None:
      raise UserError(f"config.judge.model: {self.config.model} was not opened")

  def normalize(self, text: str) -> str:
    """The normal form: case, punctuation, articles, numbers, units; "" says nothing."""
    return read(text).text

  def same(self, a: str, b: str, *, question: str = "") -> bool:
    """True only if the two answers certainly mean the same."""
    return self.compare(a, b, question=question) is Same.SAME

  def compare(self, a: str, b: str, *, question: str = "") -> Same:
    """The comparison with its third outcome."""
    said = self.by_rules(a, b, question=question)
    if self.model is None or (pair := _to_ask(a, b, question, said)) is None:
      return said
    return self.model.decide(pair)

  def compare_all(self, pairs: Iterable[tuple[str, str, str]]) -> list[Same]:
    """`compare` of many (question, a, b), for which a model is asked once."""
    pairs = list(pairs)
    self.prepare(pairs)
    return [self.compare(a, b, question=question) for question, a, b in pairs]

  def prepare(self, pairs: Iterable[tuple[str, str, str]]) -> None:
    """Asks the model about all (question, a, b) that it will be needed for, in one call.

    Later comparisons of these pairs cost nothing. Without a model it does nothing.
    """
    if self.model is None:
      return
    asked = (
      _to_ask(a, b, question, self.by_rules(a, b, question=question)) for question, a, b in pairs
    )
    self.model.prepare(pair for pair in asked if pair is not None)

  def by_rules(self, a: str, b: str, *, question: str = "") -> Same:
    """What the rules say, whatever the model would."""
    if self.config.rules:
      return _by_own_rules(self.config.rules, question, a, b)
    words = question.split(maxsplit=1)
    elaborates = not words or words[0].lower() not in _ASKS_FOR_TEXT
    return _by_rules(a, b, self.config, elaborates)


@functools.lru_cache(maxsize=262_144)
def _by_rules(a: str, b: str, config: JudgeConfig, elaborates: bool) -> Same:
  if a == b:
    return Same.SAME
  x, y = read(a), read(b)
  if not x.text or not y.text:
    return Same.DIFFERENT
  return compare(
    x,
    y,
    table=tables.load(config.synonyms, plurals=config.plurals),
    plurals=config.plurals,
    units_optional=config.units_optional,
    close=config.close,
    elaborates=elaborates,
  )


@functools.lru_cache(maxsize=262_144)
def _by_own_rules(rules: str, question: str, a: str, b: str) -> Same:
  if a == b:
    return Same.SAME
  if not read(a).text or not read(b).text:
    return Same.DIFFERENT
  said = load_function(rules, where=_RULES)(question, a, b)
  if said not in (True, False, None):
    raise UserError(f"{_RULES}={rules!r}: it returned {said!r:.80}, not True, False or None")
  return Same.UNDECIDED if said is None else Same.SAME if said else Same.DIFFERENT


def _to_ask(a: str, b: str, question: str, said: Same) -> Pair | None:
  """What a model is to be asked after the rules, None if it is not to be."""
  x, y = read(a), read(b)
  if said is Same.SAME or not (x.text and y.text and x.whole and y.whole):
    return None
  return Pair(question, x.text, y.text)


def open_judge(
  config: JudgeConfig,
  *,
  model: TextModel | None = None,
  identity: str = "",
  audited: Mapping[str, str] | None = None,
  kept: str | os.PathLike | None = None,
) -> Judge:
  """The judge of a config.

  Args:
    config: its section.
    model: the model that `config.model` names, opened; None if it names none.
    identity: of that model: `models.weights.content_hash` of a folder, or what an endpoint says.
    audited: role → identity of the models that are audited, such as {"target": …}.
    kept: file of the model's replies, which a resumed run finds again.

  Raises:
    UserError: the judge is one of the audited models, a file of synonyms is wrong, or there is no
      model where the config names one, or its own rules cannot be imported.
  """
  tables.load(config.synonyms, plurals=config.plurals)
  if config.rules:
    load_function(config.rules, where=_RULES)
  if model is None:
    return Judge(config)
  if not identity:
    raise ValueError("a judge's model needs an identity")
  roles = [role for role, other in (audited or {}).items() if other == identity]
  if roles and not config.allow_same:
    raise UserError(
      f"config.judge.model: {config.model} has the weights of the {' and the '.join(roles)}, and a"
      " model must not judge its own answers; choose another one, or set"
      " config.judge.allow_same=True"
    )
  lines = None if kept is None else jsonl.json_lines(kept)
  return Judge(config, ModelJudge(model, identity, config.max_new_tokens, lines))
