# SPDX-License-Identifier: Apache-2.0
"""discover: sweeps the image pool for finds, asking what a surrogate ranks best.

For each question that is asked, several are proposed: by the trained auditors, by the one before
training, and by the data set if it has any. A small net learns from the verdicts so far, those of
GRPO included, and ranks the proposals of a batch over all of its images at once. It is too sure of
what it ranks first, so what became of earlier predictions corrects the next ones. Kinds of
questions take turns as long as they are likely finds (`audit.ranking`). Nothing is asked twice, but
for disagreements that are tried in other words before they are finds (`discover.again`). The
control is random questions alone at equal total queries, GRPO's included.

Reads:  WORKDIR/auditors and WORKDIR/records, which train writes.
Writes: WORKDIR/discover.
Costs:  config.discover.probes queries, each answered by target and references, and
        config.discover.proposals times as many samples of the auditors.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import logging
import pathlib
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from auditdm_jax.audit import ranking
from auditdm_jax.audit.attempt import Attempt
from auditdm_jax.audit.ranking import Candidate, Ranked
from auditdm_jax.audit.recalibration import Recalibration
from auditdm_jax.audit.skills import Kinds
from auditdm_jax.core import metrics, streams
from auditdm_jax.core.records import chunks
from auditdm_jax.rl import flops, neighbours
from auditdm_jax.rl.surrogate import Surrogate
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.proposing import Proposers
from auditdm_jax.stages.results import Discovered
from auditdm_jax.stages.rewording import Reworded
from auditdm_jax.stages.truth import ModeKey

_ROWS = 512  # Verdicts that are handed to the surrogate at once.
_IDLE = 3  # Batches without anything new to ask, after which the sweep ends.
_LEAST_BATCH = 8  # The least batch is that part of a whole one, unless fewer queries are left.


def main(config: ConfigDict, workdir: pathlib.Path) -> int:
  with Context(config, workdir, "discover") as ctx:
    run(ctx)
  return 0


def run(ctx: Context) -> Discovered:
  """Spends `discover.probes`; resumes after the last whole batch, as if it had gone on."""
  if (found := ctx.folder.done("discover", Discovered)) is not None:
    return found
  section = ctx.settings.discover
  if not section.probes:
    return ctx.folder.finish("discover", Discovered({}, 0))
  sweep, done, asked, finds, idle = _Sweep(ctx), 0, 0, 0, 0
  for batch, attempts in ctx.folder.sweep():
    for missing in range(done, batch):  # Batches that asked nothing left no record.
      sweep.learn(missing, [])
    sweep.learn(batch, attempts)
    asked, done = asked + sum(a.queries for a in attempts), batch + 1
  with metrics.Progress(section.probes, "discover", done=asked) as progress:
    # A batch that has too few new questions is short, and another one makes up for it.
    while asked < section.probes and idle < _IDLE:
      ranked, attempts = sweep.ask(done, section.probes - asked)
      ctx.folder.append_sweep(ranked, attempts)
      sweep.learn(done, attempts)
      asked, done = asked + sum(a.queries for a in attempts), done + 1
      idle = 0 if attempts else idle + 1
      finds += sum(a.find is not None for a in attempts)
      shown = " ".join(f"{arm}:{n}" for arm, n in Counter(a.probe.arm for a in attempts).items())
      progress.update(asked, finds=finds, arms=shown)
  if asked < section.probes:
    logging.warning(
      "discover: asked %d of %d probes: nothing new was proposed", asked, section.probes
    )
  if section.again:
    _tell_what_was_not_reworded(ctx.folder.swept())
  arms = _history(ctx.folder.swept(), ctx.folder.ranked(), ModeKey(ctx.seeds))
  return ctx.folder.finish("discover", Discovered(arms, asked))


def _tell_what_was_not_reworded(attempts: Iterable[Attempt]) -> None:
  """Warns of disagreements that stand without having returned."""
  disagreed = (a for a in attempts if a.verdict and a.verdict.disagreement)
  tried = [a.again is not None and a.again.returned is not None for a in disagreed]
  if missing := tried.count(False):
    logging.warning(
      "discover: %d of %d disagreements are finds in one wording only: no other was had, or"
      " answered, or no query was left for it",
      missing,
      len(tried),
    )


class _Sweep:
  """Chooses and asks batches: a pure function of the config and of what was asked before."""

  def __init__(self, ctx: Context):
    self._ctx, self._bank = ctx, ctx.models.bank()
    self._proposers = Proposers(ctx, self._bank)
    self._kind_of = Kinds(ctx.seeds)
    sight = self._proposers.sight
    self._surrogate = neighbours.make(
      ctx.settings.rollout.surrogate,
      look=sight.before,
      reader=sight.reader,
      seed=ctx.settings.seed,
    )
    self._reworded = Reworded(ctx, self._bank) if ctx.settings.discover.again else None
    self._recalibrated = Recalibration(least=self._surrogate.config.least)
    self._asked: set[str] = set()
    for rows in chunks(ctx.folder.completions(), _ROWS):
      self._observe(rows)
    self._fit("start", ctx.settings.discover.start)

  def ask(self, batch: int, left: int) -> tuple[Ranked, list[Attempt]]:
    """Asks of what is proposed for a batch, by at most `left` queries."""
    ctx, section = self._ctx, self._ctx.settings.discover
    n = min(section.batch, left)
    if self._reworded:  # Towards the end a share is kept to ask again.
      n = min(n, max(left // 2, section.batch // _LEAST_BATCH, 1))
    proposed = self._proposers.propose(batch, self._asked)
    probes = [a.probe for a in proposed.attempts]
    questions, images = [p.question for p in probes], [p.image_id for p in probes]
    rng = streams.rng(ctx.settings.seed, "sweep", ctx.round.number, batch)
    predicted, new = self._predict(questions, images, n, rng)
    scores = self._recalibrated(predicted)
    ways = ranking.pick(
      [
        Candidate(
          image=p.origin_id,
          kind=self._kind_of(p.question),
          score=float(score),
          raw=float(raw),
          open=p.arm in self._proposers.open,
        )
        for p, score, raw in zip(probes, scores, predicted, strict=True)
      ],
      size=n,
      config=section.ranking,
      rng=rng,
      new=new,
      blind=not self._surrogate.ready,
    )
    places = sorted(ways)
    meter = flops.Meter(ctx.models.auditor, self._bank)
    with meter.towers("answers"):
      verdicts = self._bank.verdicts(
        ctx.images, [questions[i] for i in places], image_ids=[images[i] for i in places]
      )
    known = self._surrogate.ready
    attempts = [
      Attempt(
        probe=dataclasses.replace(
          probes[i], way=ways[i], score=round(float(scores[i]), 4) if known else None
        ),
        verdict=verdict,
      )
      for i, verdict in zip(places, verdicts, strict=True)
    ]
    if self._reworded:
      with meter.towers("answers"):
        attempts = self._reworded(attempts, most=left - len(attempts))
    meter.answered(_answered(attempts))
    predictions = len(probes) + len(places)  # `learn` predicts what was asked once more.
    learning = self._surrogate.flops(predictions, fits=section.fits * self._surrogate.config.fits)
    answers = {k: v for k, v in meter.flops.items() if k == "answers"}  # Of endpoints not known.
    return (
      Ranked(
        batch=batch,
        proposals=proposed.sampled,
        candidates=len(probes),
        images=len({p.origin_id for p in probes}),
        made=len({p.image_id for p in probes if p.image_id != p.origin_id}),
        flops={"auditors": proposed.flops, "surrogate": learning} | answers,
      ),
      attempts,
    )

  def _predict(
    self, questions: Sequence[str], images: Sequence[str], n: int, rng: np.random.Generator
  ) -> tuple[np.ndarray, list[int]]:
    """Returns probabilities to choose `n` by, and the places of what is least like the others."""
    if isinstance(self._surrogate, Surrogate):  # The net does not tell likeness.
      return self._surrogate.predict(questions, images), []
    new = round(self._ctx.settings.discover.ranking.new * n)
    return self._surrogate.survey(questions, images, size=n, new=new, rng=rng)

  def learn(self, batch: int, attempts: Sequence[Attempt]) -> None:
    """Learns from a batch, whether it was asked now or before a restart."""
    if attempts and self._surrogate.ready:
      # Predicted again: what was predicted before a restart is not stored, only its correction.
      self._recalibrated.observe(self._surrogate.predict(*_asked(attempts)), _found(attempts))
    self._observe(attempts)
    self._fit(batch, self._ctx.settings.discover.fits)

  def _observe(self, attempts: Sequence[Attempt]) -> None:
    told = [a for a in attempts if a.verdict is not None]
    self._asked.update(a.probe.probe_id for a in told)
    self._asked.update(a.again.verdict.probe_id for a in told if a.again)
    for attempt in told:
      self._proposers.read(attempt.probe)
    if told:
      self._surrogate.observe(*_asked(told), _found(told))
    for find in (find for a in told if (find := a.find)):
      self._proposers.learn(self._kind_of(find.probe.question), find)

  def _fit(self, of: int | str, times: int) -> None:
    for i in range(times):
      self._surrogate.fit("sweep", of, i)


def _asked(attempts: Sequence[Attempt]) -> tuple[list[str], list[str]]:
  """Returns questions, and the ids of their images."""
  return [a.probe.question for a in attempts], [a.probe.image_id for a in attempts]


def _answered(attempts: Sequence[Attempt]) -> list[tuple[str, str]]:
  """Returns each question that was answered, in each wording, and the consensus."""
  asked = [(a.probe.question, a.verdict) for a in attempts]
  asked += [(a.again.question, a.again.verdict) for a in attempts if a.again]
  return [(question, (verdict and verdict.consensus) or "") for question, verdict in asked]


def _found(attempts: Sequence[Attempt]) -> list[bool]:
  return [a.find is not None for a in attempts]


def _history(
  attempts: Iterable[Attempt], ranked: Iterable[Ranked], mode_key: ModeKey
) -> Mapping[str, Mapping[str, Any]]:
  """By arm: what it proposed, probes, finds, modes of them, and modes that nobody else found."""
  proposals, probes = Counter[str](), Counter[str]()
  finds: dict[str, Counter[str]] = {}
  for row in ranked:
    proposals.update(row.proposals)
  for attempt in attempts:
    arm = attempt.probe.arm
    probes[arm] += 1
    if (mode := mode_key(attempt)) is not None:
      finds.setdefault(arm, Counter())[mode] += 1
  everyone = sum(finds.values(), Counter[str]())
  return {
    arm: {
      "proposals": proposals[arm],
      "probes": probes[arm],
      "finds": (own := finds.get(arm, Counter[str]())).total(),
      "modes": len(own),
      "only_here": sum(everyone[m] == n for m, n in own.items()),
    }
    for arm in sorted({*proposals, *probes})
  }
