# SPDX-License-Identifier: Apache-2.0
"""discover: sweeps the image pool for finds with a bandit over arms.

Arms are the trained auditor's checkpoints, the untrained auditor and random questions. The budget
moves to the arm that brings finds of new kinds. Finds made during GRPO are free and are kept. The
control is random questions alone at equal total queries, GRPO's included.
"""

from collections.abc import Sequence
import pathlib

from ml_collections import ConfigDict

from auditdm_jax.audit import rates
from auditdm_jax.audit.answer import ModelBank
from auditdm_jax.audit.arms import Arms
from auditdm_jax.audit.probe import Probe
from auditdm_jax.core import metrics, streams
from auditdm_jax.stages import train
from auditdm_jax.stages.attempts import Attempt, ModeKey
from auditdm_jax.stages.context import Context, InMemoryPool

RANDOM, UNTRAINED, CONTROL = "random", "untrained", "control"


def main(config: ConfigDict, workdir: pathlib.Path) -> int:
  with Context(config, workdir, "discover") as ctx:
    run(ctx)
  return 0


def run(ctx: Context) -> dict:
  """Spends `discover.probes` over the arms; resumes after the last whole batch."""
  if (found := ctx.done("discover")) is not None:
    return found
  section, records = ctx.settings.discover, ctx.records("discover")
  checkpoints = {f"auditor@{step}": step for step in train.auditors(ctx)}
  arms = Arms([*checkpoints, UNTRAINED, RANDOM], config=section.arms, seed=ctx.settings.seed)
  mode_key = ModeKey(ctx.seeds)
  done: dict[int, list[dict]] = {}
  for row in records.read("attempts"):
    done.setdefault(row["batch"], []).append(row)
  ask = _Asker(ctx, checkpoints)
  progress = metrics.Progress(section.probes, "discover")
  finds = 0
  for batch in range(-(-section.probes // section.batch)):
    plan = arms.allocate(section.batch)
    rows = done.get(batch, [])
    if not rows or not rows[-1].get("last"):
      have = {r["key"] for r in rows}
      attempts = []
      for arm, n in plan.items():
        own = ask(arm, n, batch)
        ask.book(own)
        attempts += own
      rows_new = [
        {"batch": batch, "key": f"{batch}/{i}", **a.to_dict()} for i, a in enumerate(attempts)
      ]
      rows_new[-1]["last"] = True
      records.append("attempts", [r for r in rows_new if r["key"] not in have])
    else:
      attempts = [Attempt.from_dict(r) for r in rows]
      ask.book(attempts)
    for arm in plan:
      arms.observe(arm, [mode_key(a) for a in attempts if a.probe.arm == arm])
    finds += sum(a.is_find for a in attempts)
    progress.update(
      (batch + 1) * section.batch, finds=finds, arms=" ".join(f"{k}:{v}" for k, v in plan.items())
    )
  progress.close()
  return ctx.finish("discover", {"arms": arms.summary(), "probes": section.probes})


def load(ctx: Context) -> list[Attempt]:
  """Every attempted probe: GRPO's completions, then discovery's."""
  ctx.pool("images")  # so that their images are found by id
  rows = ctx.records("discover").read("attempts")
  return [*train.load_attempts(ctx), *(Attempt.from_dict(r) for r in rows)]


class _Asker:
  """Makes and asks an arm's probes: a pure function of (config.seed, arm, batch, n) and of what was
  booked, GRPO's completions included: no auditor spends a query on a question that was asked.
  """

  def __init__(self, ctx: Context, checkpoints: dict[str, int]):
    self._ctx, self._checkpoints, self._bank = ctx, checkpoints, ctx.bank()
    self._pool = ctx.pool("images")
    self._auditor = train.Asker(ctx, self._bank, pool=self._pool)
    self._random = RandomQuestions(self._pool, ctx.settings.seed, RANDOM)
    self._asked = {a.probe.probe_id for a in train.load_attempts(ctx) if a.verdict}

  def book(self, attempts: Sequence[Attempt]) -> None:
    """Remembers a batch, whether it was asked now or before a restart."""
    self._asked.update(a.probe.probe_id for a in attempts if a.verdict)
    self._random.skip(sum(a.probe.arm == RANDOM for a in attempts))

  def __call__(self, arm: str, n: int, batch: int) -> list[Attempt]:
    if n == 0:
      return []
    if arm == RANDOM:
      return ask_questions(self._ctx, self._bank, self._pool, self._random.next(n), arm=arm)
    return self._auditor.ask(
      self._checkpoints.get(arm), n, arm=arm, walk=("discover", arm, batch), asked=self._asked
    )


class RandomQuestions:
  """The data set's own questions in a seeded order, each once: the control of an auditor."""

  def __init__(self, pool: InMemoryPool, seed: int, arm: str):
    asked = [(i, q) for i in range(len(pool)) for q in pool.questions(i)]
    order = streams.rng(seed, "random questions", arm).permutation(len(asked))
    self._asked, self._at = [asked[int(i)] for i in order], 0

  def __len__(self) -> int:
    return len(self._asked)

  def next(self, n: int) -> list[tuple[int, str]]:
    """The next `n` (image number, question); the last ones if there are fewer."""
    return self._asked[self._at : self._at + n]

  def skip(self, n: int) -> None:
    """Goes on by `n`."""
    self._at += n


def ask_questions(
  ctx: Context,
  bank: ModelBank,
  pool: InMemoryPool,
  asked: Sequence[tuple[int, str]],
  *,
  arm: str,
  label: str = "",
  cascade: bool | None = None,
) -> list[Attempt]:
  """Puts (image number, question) pairs to the bank; `cascade` overrides its config."""
  ids = [pool.image_id(i) for i, _ in asked]
  progress = metrics.Progress(len(asked), label) if label else None
  verdicts = bank.verdicts(
    ctx.images,
    [q for _, q in asked],
    image_ids=ids,
    cascade=cascade,
    progress=(lambda done, _: progress.update(done)) if progress else None,
  )
  if progress:
    progress.close()
  return [
    Attempt(
      Probe.make(image_id, question, arm=arm, source=f"{pool.split}/{i}", seed=ctx.settings.seed), v
    )
    for (i, question), image_id, v in zip(asked, ids, verdicts, strict=True)
  ]


def random_control(ctx: Context, n: int) -> list[Attempt]:
  """`n` random questions of the pool put to the audited target (all there are, if fewer).

  All models answer: what the target knew has a consensus too, and is trained on.
  """
  pool = ctx.pool("images")
  questions = RandomQuestions(pool, ctx.settings.seed, CONTROL)
  return ask_questions(
    ctx, ctx.bank(), pool, questions.next(n), arm=CONTROL, label="random questions", cascade=False
  )


def arm_row(attempts: Sequence[Attempt], verified: dict, cover: dict, keys: Sequence[str]) -> dict:
  """One row of summary.json's arms."""
  counts: dict[str, int] = {}
  for key in keys:
    counts[key] = counts.get(key, 0) + 1
  return {
    "queries": len(attempts), "verified": verified, "confirmed_unique": cover["confirmed"],
    "gaps_found": cover["gaps_found"], "effective_modes": cover["effective_modes"],
    "effective_skills": cover["effective_skills"],
    "unseen_mass": rates.good_turing(counts.values()) if counts else None,
  }  # fmt: skip
