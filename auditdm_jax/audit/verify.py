# SPDX-License-Identifier: Apache-2.0
"""Verification: what a find must survive before it is called a failure.

  V0  the references agree and the target differs (a find)
  V1  + no required gate that was measured fails, and the same disagreement comes back in at least
      `stable_share` of: the original again, k paraphrases, k image jitters
  V2  + somebody outside the ensemble (`audit.outside`) sides with the consensus against the target
  V3  + a person says that only the consensus is right (set later, see `audit.labels`)

A gate that could not be tried is not measured. It counts for no grade and against none, so a grade
is worth what `tally` says was measured for it:

  well_formed, both_ways, near_duplicate, image_sane   always
  answerable                                           another wording of the question was found
  language_prior                                       `blank_image`
  benchmark_leak                                       an index of benchmark items
  edit_outside, edit_fraction, sham_control            of edited images, by the maker of the image

No find is dropped: each comes back with its grade and every number, and the funnel counts them.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses

import numpy as np

from auditdm_jax.audit import gates
from auditdm_jax.audit import outside as outside_lib
from auditdm_jax.audit.answer import ModelBank
from auditdm_jax.audit.attempt import Failure, Find, Gate, Opinion, Side, Stability
from auditdm_jax.audit.duplicates import DuplicateIndex, fingerprint
from auditdm_jax.audit.judge import Judge
from auditdm_jax.audit.outside import Outside
from auditdm_jax.audit.probe import Verdict
from auditdm_jax.audit.rates import Rate, rate_by_image
from auditdm_jax.audit.verdict import agreed

Paraphrase = Callable[[str, int], str | None]
Jitter = Callable[[np.ndarray, int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class VerifyConfig:
  """What verification asks for.

  Attributes:
    paraphrases: other wordings of a find's question that are tried.
    jitters: image changes per find.
    stable_share: least share of trials that must reproduce the disagreement (4 of 5).
    blank_image: ask the references about a grey image too (the language-prior gate).
    required: gates that V1 needs, where they are measured; the others are stored only.
    max_words: longest well-formed question.
    chunk: finds looked at together.
  """

  paraphrases: int = 2
  jitters: int = 2
  stable_share: float = 0.8
  blank_image: bool = True
  required: tuple[str, ...] = (
    "well_formed",
    "answerable",
    "both_ways",
    "language_prior",
    "near_duplicate",
    "benchmark_leak",
    "image_sane",
    "edit_outside",
    "edit_fraction",
    "sham_control",
  )
  max_words: int = 40
  chunk: int = 512


@dataclasses.dataclass(frozen=True)
class Tally:
  """What became of a gate: `passed` is over the finds that it was measured of."""

  passed: Rate
  unmeasured: int
  required: bool


@dataclasses.dataclass(frozen=True)
class View:
  """Whose side somebody outside the ensemble takes on verified failures.

  Attributes:
    agrees: with the consensus, of the failures that they answered.
    others: how often they took another side.
    unmeasured: failures that they did not answer.
  """

  agrees: Rate
  others: Mapping[str, int]
  unmeasured: int


@dataclasses.dataclass(frozen=True)
class Verification:
  """All finds, graded, and how many passed each step."""

  failures: tuple[Failure, ...]
  funnel: dict[str, int]


@dataclasses.dataclass(frozen=True)
class _Learned:
  """What verification learns of a find."""

  gates: tuple[Gate, ...]
  stability: Stability
  wordings: tuple[str, ...]
  opinion: Opinion | None


@dataclasses.dataclass(frozen=True)
class _Trial:
  find: int
  label: str
  image_id: str
  question: str


def verify(
  finds: Sequence[Find],
  bank: ModelBank,
  *,
  measured: Sequence[tuple[Gate, ...]] | None = None,
  images: Callable[[str], np.ndarray],
  paraphrase: Paraphrase | None = None,
  jitter: Jitter | None = None,
  outside: Sequence[Outside] = (),
  config: VerifyConfig = VerifyConfig(),
  benchmark: DuplicateIndex | None = None,
  progress: Callable[[int, int], None] | None = None,
) -> Verification:
  """Grades finds.

  Args:
    finds: finds with complete answers.
    bank: target and references; asked in full, without cascade.
    measured: gates that only the maker of an image could measure, for each find.
    images: loads the u8[H,W,3] of an image id.
    paraphrase: `(question, k >= 1) -> another wording`, or None if it has none; None: no
        paraphrase trials.
    jitter: `(image, k) -> image` that changes nothing of meaning; None: `default_jitter`.
    outside: who is asked for V2, see `audit.outside.ask`.
    config: what is asked for.
    benchmark: index of benchmark items, for the leak gate.
    progress: called with (finds done, finds in all).

  Returns:
    One Failure per find, in order, and the funnel.
  """
  made = measured or [()] * len(finds)
  seen, failures = DuplicateIndex(), []
  change = jitter or default_jitter
  # In chunks: the trials' images exist only while their finds are looked at.
  for start in range(0, len(finds), config.chunk):
    chunk = finds[start : start + config.chunk]
    tries = _try(chunk, bank, images, paraphrase, change, config)
    opinions = outside_lib.ask(outside, chunk, bank.judge)
    own_gates = made[start : start + config.chunk]
    for find, own, tried, opinion in zip(chunk, own_gates, tries, opinions, strict=True):
      image = images(find.probe.image_id)
      here = _gates(find, tried, bank, image, seen=seen, benchmark=benchmark, config=config)
      learned = _Learned(
        gates=(*here, *own),
        stability=_stability(find, tried, bank.judge),
        wordings=tuple(t.question for t, _ in tried if t.label.startswith("paraphrase")),
        opinion=opinion,
      )
      failures.append(_graded(find, learned, config))
    if progress:
      progress(len(failures), len(finds))
  return Verification(tuple(failures), _funnel(failures, config))


@dataclasses.dataclass(frozen=True)
class Retried:
  """A find that was asked again, and what the models said.

  Attributes:
    trials: for each trial its label, its question and its verdict.
    stability: in how many of them the same disagreement showed.
  """

  trials: tuple[tuple[str, str, Verdict], ...]
  stability: Stability


def retry(
  finds: Sequence[Find],
  bank: ModelBank,
  *,
  images: Callable[[str], np.ndarray],
  paraphrase: Paraphrase | None = None,
  config: VerifyConfig,
) -> list[Retried]:
  """Asks finds again by the trials of `verify`, without grading them; arguments as there."""
  tried = _try(finds, bank, images, paraphrase, default_jitter, config)
  return [
    Retried(tuple((t.label, t.question, v) for t, v in own), _stability(find, own, bank.judge))
    for find, own in zip(finds, tried, strict=True)
  ]


def _try(
  finds: Sequence[Find],
  bank: ModelBank,
  images: Callable[[str], np.ndarray],
  paraphrase: Paraphrase | None,
  jitter: Jitter,
  config: VerifyConfig,
) -> list[list[tuple[_Trial, Verdict]]]:
  """Per find its trials, each with its verdict."""
  trials, extra = _plan(finds, images, paraphrase, jitter, config)

  def get(image_id: str) -> np.ndarray:
    return extra[image_id] if image_id in extra else images(image_id)

  verdicts = bank.verdicts(
    get, [t.question for t in trials], image_ids=[t.image_id for t in trials], cascade=False
  )
  tried: list[list[tuple[_Trial, Verdict]]] = [[] for _ in finds]
  for trial, verdict in zip(trials, verdicts, strict=True):
    tried[trial.find].append((trial, verdict))
  bank.judge.prepare(pair for find, own in zip(finds, tried) for pair in _compared(find, own, bank))
  return tried


def _compared(
  find: Find, tried: Sequence[tuple[_Trial, Verdict]], bank: ModelBank
) -> Iterator[tuple[str, str, str]]:
  """What `_stability` and `_gates` compare a find's trials by: (question, answer, answer)."""
  consensus, question = find.consensus, find.probe.question
  seen = _said(tried[0][1])
  for trial, verdict in tried:
    said = _said(verdict)
    if trial.label.startswith("blank"):
      yield from ((question, seen[name], answer) for name, answer in said.items())
      continue
    yield trial.question, said[bank.references[0]], consensus
    if trial.label.startswith("paraphrase"):
      yield from ((question, consensus, answer) for answer in said.values())


def _said(verdict: Verdict) -> dict[str, str]:
  """Returns the references' answers in a verdict of which all models were asked."""
  return {name: verdict.answers[name] or "" for name in verdict.references}


def default_jitter(image: np.ndarray, k: int) -> np.ndarray:
  """Meaning-preserving change number k: even k shifts by one pixel, odd k dims by 4 %."""
  if k % 2:
    return np.round(image * (0.96 if k % 4 == 1 else 0.92)).astype(np.uint8)
  step = 1 if k % 4 == 0 else -1
  padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
  return padded[1 + step : 1 + step + image.shape[0], 1 : 1 + image.shape[1]]


def _plan(
  finds: Sequence[Find],
  images: Callable[[str], np.ndarray],
  paraphrase: Paraphrase | None,
  jitter: Jitter,
  config: VerifyConfig,
) -> tuple[list[_Trial], dict[str, np.ndarray]]:
  """All questions to ask, and the images that exist only for the trials."""
  trials, extra = [], {}
  for i, find in enumerate(finds):
    source, question = find.probe.image_id, find.probe.question
    trials.append(_Trial(i, "greedy:0", source, question))
    wordings = {question}
    for k in range(config.paraphrases):
      other = paraphrase(question, k + 1) if paraphrase else None
      # A wording that was tried already is no new evidence.
      if other is not None and other not in wordings:
        wordings.add(other)
        trials.append(_Trial(i, f"paraphrase:{k}", source, other))
    for k in range(config.jitters):
      key = f"jitter:{k}:{source}"
      if key not in extra:
        extra[key] = jitter(images(source), k)
      trials.append(_Trial(i, f"jitter:{k}", key, question))
    if config.blank_image:
      shape = images(source).shape
      key = f"blank:{shape}"
      extra[key] = np.full(shape, 128, np.uint8)
      trials.append(_Trial(i, "blank:0", key, question))
  return trials, extra


def _stability(find: Find, tried: Sequence[tuple[_Trial, Verdict]], judge: Judge) -> Stability:
  """Counts the trials that end in the same disagreement about the same consensus."""
  outcomes = []
  for trial, verdict in tried:
    if trial.label.startswith("blank"):
      continue
    again = verdict.disagreement and judge.same(
      verdict.consensus or "", find.consensus, question=trial.question
    )
    outcomes.append((trial.label, again))
  return Stability(
    k=sum(again for _, again in outcomes),
    n=len(outcomes),
    trials=tuple(f"{label}={int(again)}" for label, again in outcomes),
  )


def _gates(
  find: Find,
  tried: Sequence[tuple[_Trial, Verdict]],
  bank: ModelBank,
  image: np.ndarray,
  *,
  seen: DuplicateIndex,
  benchmark: DuplicateIndex | None,
  config: VerifyConfig,
) -> tuple[Gate, ...]:
  """The gates of a find, which is `seen` from then on."""
  probe, looks = find.probe, fingerprint(image)
  judge, rule, verdicts = bank.judge, bank.config.rule, {t.label: v for t, v in tried}
  again = [
    agreed(verdict, judge, rule=rule, question=trial.question)
    for trial, verdict in tried
    if trial.label.startswith("paraphrase")
  ]
  prior = Gate.unmeasured("language_prior", "no blank image was shown")
  if config.blank_image:
    seen_and_blank = _said(verdicts["greedy:0"]), _said(verdicts["blank:0"])
    prior = gates.language_prior(*seen_and_blank, judge, rule=rule, question=probe.question)
  leak = Gate.unmeasured("benchmark_leak", "no benchmark to compare with")
  if benchmark is not None:
    leak = gates.near_duplicate(looks, probe.question, benchmark, name="benchmark_leak")
  answer = judge.normalize(find.consensus)
  duplicate = gates.near_duplicate(looks, probe.question, seen, answer=answer)
  seen.add(looks, probe.question, answer)
  return (
    gates.well_formed(probe.question, max_words=config.max_words),
    gates.answerable(find.consensus, again, judge, question=probe.question),
    gates.both_ways(find.said, find.consensus, judge, question=probe.question),
    duplicate,
    gates.image_sane(image),
    prior,
    leak,
  )


def _graded(find: Find, learned: _Learned, config: VerifyConfig) -> Failure:
  fails = any(g.passed is False for g in learned.gates if g.name in config.required)
  grade = "V0"
  if not fails and learned.stability.share >= config.stable_share:
    grade = "V2" if learned.opinion and learned.opinion.side == "consensus" else "V1"
  return Failure.of(find, grade=grade, **vars(learned))


def tally(failures: Sequence[Failure], required: Sequence[str]) -> dict[str, Tally]:
  """Returns by gate how many finds passed it, of how many, and of how many nothing is known."""
  found: dict[str, list[tuple[bool | None, str]]] = {}
  for failure in failures:
    for gate in failure.gates:
      found.setdefault(gate.name, []).append((gate.passed, failure.probe.origin_id))
  return {
    name: Tally(
      rate_by_image(
        [bool(x) for x, _ in rows if x is not None], [i for x, i in rows if x is not None]
      ),
      unmeasured=sum(x is None for x, _ in rows),
      required=name in required,
    )
    for name, rows in found.items()
  }


def sides(failures: Sequence[Failure]) -> dict[str, View]:
  """Returns by who decided whose side was taken, over verified failures (V1 and above)."""
  found: dict[str, list[tuple[Side, str]]] = {}
  for f in failures:
    if f.verified and f.opinion:
      found.setdefault(f.opinion.by, []).append((f.opinion.side, f.probe.origin_id))
  views = {}
  for by in sorted(found):
    told = [(side, image) for side, image in found[by] if side != "not measured"]
    views[by] = View(
      agrees=rate_by_image([side == "consensus" for side, _ in told], [i for _, i in told]),
      others=dict(Counter(side for side, _ in told if side != "consensus")),
      unmeasured=len(found[by]) - len(told),
    )
  return views


def _funnel(failures: Sequence[Failure], config: VerifyConfig) -> dict[str, int]:
  """Finds that no required gate up to this one fails, then stable ones (= V1), then V2 if asked."""
  left, funnel = list(failures), {"looked_at": len(failures)}
  there = {g.name for f in failures for g in f.gates}
  for name in config.required:
    if name in there:
      left = [f for f in left if all(g.passed is not False for g in f.gates if g.name == name)]
      funnel[name] = len(left)
  funnel["stable"] = sum(f.verified for f in left)
  if any(f.opinion and f.opinion.side != "not measured" for f in failures):
    funnel["independent_agrees"] = sum(f.grade == "V2" for f in left)
  return funnel
