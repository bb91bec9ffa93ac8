# SPDX-License-Identifier: Apache-2.0
"""Before anything is spent: can these models be audited against each other, as they are asked?

Pure measurement and judgement over the answers to some questions. Each model by itself:

    truncated, refused, silent    it gives no answer, and a probe without one is never a find
    wordy                         its answer holds a shorter one, so that it contradicts everybody

The models together, looked at once none of them is to blame alone:

    copies        two reply the same throughout, errors and wording included: they cannot differ, or
                  are one opinion counted twice
    no consensus  the references do not agree, and only what they agree on can be a find
    undecided     the judge cannot say

A floor is broken where the whole 95 % interval lies beyond it. A few questions therefore stop a run
only where the result leaves no doubt.

How a target answers stops nothing: that it cannot answer is what an audit is to find out, and a
warning says what to change if it could. Only a target without a single answer stops the run.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools

from auditdm_jax.audit.judge import Judge, Same
from auditdm_jax.audit.probe import Verdict
from auditdm_jax.audit.rates import Rate, rate_by_image
from auditdm_jax.audit.verdict import UNANIMOUS, UNSURE, ConsensusRule, agreed
from auditdm_jax.core.config import check
from auditdm_jax.text.short import short_answer

_SAYS = ("answer", "whole", UNSURE)  # Kinds of replies that hold an answer, see `text.short`.
_TELLING = 5  # Words of a reply that two models do not find by themselves.
_LONG = 8  # Words from which an answer that could not be shortened is no short one.


@dataclasses.dataclass(frozen=True)
class PreflightConfig:
  """What a run is checked for before it trains; a floor of 0, or a ceiling of 1, checks nothing.

  The values are ours, between what works and what was seen to fail. In the scenes world the
  references agree about nine questions in ten, with and without sentences, and no model is cut or
  refuses more than one in a hundred. With a reference that answers in sentences and is taken at its
  word, 4 % of the questions had a consensus. What the target alone breaks is a warning.

  Attributes:
    enabled: whether anything is checked at all.
    questions: put to every model.
    least_consensus: share of questions about which all references agree.
    least_agreement: share of their answers that two references agree about, for each two.
    copies_from: equal replies that tell (see `ModelPair`) from which two models count as copies, if
      all other replies are equal too; 0 = never.
    most_refused: share of refusals, for each model.
    most_abstained: share of questions that a reference says it cannot answer.
    most_truncated: share of replies that were cut, or did not leave their thinking.
    most_silent: share of empty replies, and of those that did not come.
    most_wordy: share of answers that hold a shorter one.
    most_undecided: share of questions about which the judge cannot decide.
  """

  enabled: bool = True
  questions: int = 200
  least_consensus: float = 0.2
  least_agreement: float = 0.2
  copies_from: int = 5
  most_refused: float = 0.25
  most_abstained: float = 0.5
  most_truncated: float = 0.25
  most_silent: float = 0.25
  most_wordy: float = 0.25
  most_undecided: float = 0.25

  def __post_init__(self):
    shares = [f.name for f in dataclasses.fields(self) if f.name.startswith(("least", "most"))]
    check(vars(self), "preflight", *shares, least=0.0, most=1.0)
    check(vars(self), "preflight", "questions", least=1)
    check(vars(self), "preflight", "copies_from", least=0)


@dataclasses.dataclass(frozen=True)
class Heard:
  """What one model did with the questions.

  Attributes:
    answered: share of questions that it answered.
    abstained: share of which it said that it cannot tell.
    refused: share that it would not answer.
    truncated: share of replies that were cut, or did not leave their thinking.
    silent: share of empty replies, and of those that did not come.
    wordy: share of its answers that hold a shorter one.
    words: mean number of words of its answers; None without answers.
    unsure: share that it answered as a reference that is not sure, see `bank.sure`; of none in the
      records of earlier runs.
  """

  answered: Rate
  abstained: Rate
  refused: Rate
  truncated: Rate
  silent: Rate
  wordy: Rate
  words: float | None
  unsure: Rate = rate_by_image([], [])


@dataclasses.dataclass(frozen=True)
class ModelPair:
  """Two models side by side.

  Attributes:
    models: their names.
    agreement: share of the questions answered by both, and decided, on which they say the same.
    undecided: share of the questions answered by both about which the judge cannot decide.
    equal: share of all questions on which both reply word for word the same.
    telling: such replies that two models which know the same would not share: those that no label
      calls right, and those of five words and more.
  """

  models: tuple[str, str]
  agreement: Rate
  undecided: Rate
  equal: Rate
  telling: int


@dataclasses.dataclass(frozen=True)
class Ensemble:
  """What target and references did with the questions.

  Attributes:
    target: name of the target.
    models: by name.
    pairs: each two models, target included.
    consensus: share of questions about which all references agree, whatever the target says.
    disagreement: share of those with a verdict on which the target says something else: a find.
    undecided: share of questions about which the judge cannot decide.
  """

  target: str
  models: Mapping[str, Heard]
  pairs: tuple[ModelPair, ...]
  consensus: Rate
  disagreement: Rate
  undecided: Rate


@dataclasses.dataclass(frozen=True)
class Problem:
  """Why a run should not start, or what it should not overlook.

  Attributes:
    cause: what is wrong, with the numbers.
    remedy: what to change.
  """

  cause: str
  remedy: str

  def __str__(self) -> str:
    return f"{self.cause}; {self.remedy}"


# --------------------------------------------------------------------------------- measurement


def measure(
  questions: Sequence[str],
  verdicts: Sequence[Verdict],
  judge: Judge,
  *,
  images: Sequence[str],
  labels: Sequence[Sequence[str]],
  rule: ConsensusRule = UNANIMOUS,
) -> Ensemble:
  """Measures an ensemble that was asked without a cascade.

  Args:
    questions: what was asked, at least one.
    verdicts: what came of each.
    judge: decides whether two answers are the same.
    images: what each question is about.
    labels: right answers to each question, as far as they are known.
    rule: what makes a consensus.
  """
  names = (verdicts[0].target, *verdicts[0].references)
  agree = [_agree(q, v, judge, rule) for q, v in zip(questions, verdicts, strict=True)]
  return Ensemble(
    target=names[0],
    models={name: _heard(name, questions, verdicts, images) for name in names},
    pairs=tuple(
      _pair(a, b, questions, verdicts, judge, images=images, labels=labels)
      for a, b in itertools.combinations(names, 2)
    ),
    consensus=rate_by_image(agree, images),
    disagreement=rate_by_image(
      [v.disagreement for v in verdicts if v.agree],
      [image for image, v in zip(images, verdicts, strict=True) if v.agree],
    ),
    undecided=rate_by_image([v.reason == "undecided" for v in verdicts], images),
  )


def _agree(question: str, verdict: Verdict, judge: Judge, rule: ConsensusRule) -> bool:
  """Whether the references agree, which a verdict does not say where it is the target's fault."""
  if verdict.reason not in ("no answer", "undecided"):
    return verdict.agree
  return agreed(verdict, judge, rule=rule, question=question) is not None


def _heard(
  name: str, questions: Sequence[str], verdicts: Sequence[Verdict], images: Sequence[str]
) -> Heard:
  kinds = [_kind(name, v) for v in verdicts]
  told = [i for i, v in enumerate(verdicts) if _says(name, v)]
  said = [verdicts[i].answers[name] or "" for i in told]

  def share(*of: str) -> Rate:
    return rate_by_image([kind in of for kind in kinds], images)

  return Heard(
    answered=share(*_SAYS),
    abstained=share("abstention"),
    refused=share("refusal"),
    truncated=share("truncated", "thinking"),
    silent=share("empty", "failed"),
    wordy=rate_by_image(
      [is_wordy(text, questions[i]) for i, text in zip(told, said, strict=True)],
      [images[i] for i in told],
    ),
    words=sum(len(text.split()) for text in said) / len(said) if said else None,
    unsure=share(UNSURE),
  )


def is_wordy(text: str, question: str) -> bool:
  """Whether an answer holds a shorter one, or is too long to be one."""
  short = short_answer(text, question=question)
  words = len(text.split())
  if short.text is None or short.kind == "whole":
    return words >= _LONG
  return len(short.text.split()) < words


def _pair(
  a: str,
  b: str,
  questions: Sequence[str],
  verdicts: Sequence[Verdict],
  judge: Judge,
  *,
  images: Sequence[str],
  labels: Sequence[Sequence[str]],
) -> ModelPair:
  both = [i for i, v in enumerate(verdicts) if _says(a, v) and _says(b, v)]
  found = judge.compare_all(
    (questions[i], verdicts[i].answers[a] or "", verdicts[i].answers[b] or "") for i in both
  )
  told = [(same, images[i]) for same, i in zip(found, both) if same is not Same.UNDECIDED]
  alike = [_raw(a, v) == _raw(b, v) != "" for v in verdicts]
  equal = [i for i, same in enumerate(alike) if same]
  telling = [
    len(_raw(a, verdicts[i]).split()) >= _TELLING
    or _is_wrong(verdicts[i].answers[a] or "", labels[i], judge, questions[i])
    for i in equal
  ]
  return ModelPair(
    models=(a, b),
    agreement=rate_by_image([same is Same.SAME for same, _ in told], [image for _, image in told]),
    undecided=rate_by_image([same is Same.UNDECIDED for same in found], [images[i] for i in both]),
    equal=rate_by_image(alike, images),
    telling=sum(telling),
  )


def _is_wrong(text: str, labels: Sequence[str], judge: Judge, question: str) -> bool:
  """Whether an answer contradicts all labels, by the rules alone."""
  found = [judge.by_rules(text, label, question=question) for label in labels]
  return bool(found) and all(same is Same.DIFFERENT for same in found)


def _kind(name: str, verdict: Verdict) -> str:
  return verdict.kinds.get(name, "answer")


def _says(name: str, verdict: Verdict) -> bool:
  return _kind(name, verdict) in _SAYS


def _raw(name: str, verdict: Verdict) -> str:
  return verdict.raw.get(name, verdict.answers[name] or "")


# ----------------------------------------------------------------------------------- judgement


def problems(found: Ensemble, config: PreflightConfig) -> tuple[Problem, ...]:
  """Returns why a run should not start; of the ensemble only where no model is to blame alone."""
  blamed = [name for name in found.models if name != found.target or not _answers(found)]
  single = [p for name in blamed for p in _of_model(name, found, config)]
  return tuple(single or _of_ensemble(found, config))


def warnings(found: Ensemble, config: PreflightConfig) -> tuple[Problem, ...]:
  """Returns what a target does instead of answering that it might not do, asked otherwise."""
  return tuple(_of_model(found.target, found, config)) if _answers(found) else ()


def _answers(found: Ensemble) -> bool:
  """Whether the target ever says what can be compared; that it cannot tell can be."""
  heard = found.models[found.target]
  return heard.answered.k + heard.abstained.k > 0


def _of_model(name: str, found: Ensemble, config: PreflightConfig) -> list[Problem]:
  heard = found.models[name]
  out = []

  def look(share: Rate, most: float, key: str, cause: str, remedy: str) -> None:
    if share.ci95[0] > most:
      said = f"{_described(name, found)} {cause} {_said(share)}, config.preflight.{key}={most:g}"
      out.append(Problem(said, remedy))

  look(
    heard.truncated,
    config.most_truncated,
    "most_truncated",
    "is cut before the end of its replies:",
    "raise config.bank.max_new_tokens, or give it a style that asks for a short answer:"
    f" config.bank.styles=(({name!r}, 'chat'),)",
  )
  look(
    heard.refused,
    config.most_refused,
    "most_refused",
    "refuses to answer:",
    f"ask it otherwise by config.bank.styles=(({name!r}, …),)"
    + ("" if name == found.target else ", or leave it out of config.models.references"),
  )
  look(
    heard.silent,
    config.most_silent,
    "most_silent",
    "gives no reply, or an empty one:",
    "see that its template and its style (config.bank.styles) are those that it was trained on, or"
    " that its endpoint answers",
  )
  look(
    heard.wordy,
    config.most_wordy,
    "most_wordy",
    "answers in sentences that are compared as they are:",
    f"give it a style that takes the short answer from them: config.bank.styles=(({name!r},"
    " 'chat'),), which also asks for one, or 'bare'",
  )
  if name != found.target:
    look(
      heard.abstained,
      config.most_abstained,
      "most_abstained",
      "says that it cannot tell:",
      "take a reference that knows these images, or ask it otherwise by config.bank.styles",
    )
  return out


def _of_ensemble(found: Ensemble, config: PreflightConfig) -> list[Problem]:
  copies = [p for p in found.pairs if _is_copy(p, config)]
  if copies:
    return [_copy(pair, found.target) for pair in copies]
  if found.undecided.ci95[0] > config.most_undecided:
    cause = (
      f"the judge cannot decide about {_said(found.undecided)} of the questions,"
      f" config.preflight.most_undecided={config.most_undecided:g}"
    )
    remedy = (
      "name a model that can as config.judge.model, or ask for other words by config.bank.styles"
    )
    return [Problem(cause, remedy)]
  apart = [
    pair
    for pair in found.pairs
    if found.target not in pair.models and pair.agreement.ci95[1] < config.least_agreement
  ]
  if apart:
    return [_apart(pair, config) for pair in apart]
  if found.consensus.ci95[1] < config.least_consensus:
    cause = (
      f"the references agree about {_said(found.consensus)} of the questions,"
      f" config.preflight.least_consensus={config.least_consensus:g}"
    )
    remedy = (
      "leave out the reference that agrees least with the others, see the table, or have its"
      " answers compared by meaning: config.bank.styles, config.judge.model"
    )
    if any(heard.unsure.k for heard in found.models.values()):
      remedy += "; those that are not sure abstain: lower config.bank.sure"
    return [Problem(cause, remedy)]
  return []


def _is_copy(pair: ModelPair, config: PreflightConfig) -> bool:
  same = pair.equal.k == pair.equal.n
  return same and bool(config.copies_from) and pair.telling >= config.copies_from


def copied_weights(models: tuple[str, str], target: str) -> Problem:
  """Returns what is wrong with two models that have the same weights."""
  return _copied(models, target, "their weights are equal")


def _copy(pair: ModelPair, target: str) -> Problem:
  why = (
    f"all {pair.equal.n} replies are equal word for word, and {pair.telling} of them are wrong by"
    f" the labels or have {_TELLING} words and more"
  )
  problem = _copied(pair.models, target, why)
  return dataclasses.replace(
    problem, remedy=f"{problem.remedy}; if it is meant, config.preflight.copies_from=0"
  )


def _copied(models: tuple[str, str], target: str, why: str) -> Problem:
  a, b = models
  if target in models:
    other = b if a == target else a
    return Problem(
      f"the target {target} is a copy of the reference {other}: {why}",
      f"they can never disagree, so take {other} out of config.models.references",
    )
  return Problem(
    f"the references {a} and {b} are copies of one model: {why}",
    "their agreement says nothing, so take one of them out of config.models.references",
  )


def _apart(pair: ModelPair, config: PreflightConfig) -> Problem:
  a, b = pair.models
  cause = (
    f"the references {a} and {b} agree about {_said(pair.agreement)} of their answers,"
    f" config.preflight.least_agreement={config.least_agreement:g}"
  )
  remedy = (
    "see whether both are asked as they were trained (config.bank.styles) and know such images, and"
    " leave out the one that does not; config.judge.model compares by meaning"
  )
  return Problem(cause, remedy)


def _described(name: str, found: Ensemble) -> str:
  return f"the {'target' if name == found.target else 'reference'} {name}"


def _said(share: Rate) -> str:
  """A rate in a sentence."""
  low, high = share.ci95
  return f"{share.k:g} of {share.n} ({share.value:.0%}, 95 % interval {low:.0%} to {high:.0%})"
