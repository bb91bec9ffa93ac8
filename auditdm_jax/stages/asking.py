# SPDX-License-Identifier: Apache-2.0
"""Who asks: an auditor in training, stored auditors, and the data set's own questions."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
import contextlib
import dataclasses
from typing import Any

from jax.sharding import Mesh

from auditdm_jax.audit.answer import ModelBank
from auditdm_jax.audit.attempt import Attempt
from auditdm_jax.audit.probe import Probe
from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.core import metrics, runtime, streams, tree
from auditdm_jax.core.config import UserError
from auditdm_jax.images import fit
from auditdm_jax.images.client import ImageClient
from auditdm_jax.rl import build, draws, probing, rollout, trainer
from auditdm_jax.rl.batch import Trajectory
from auditdm_jax.rl.drawing import Drawing
from auditdm_jax.rl.gauges import Gauges
from auditdm_jax.rl.learner import Learner
from auditdm_jax.rl.probing import Prober
from auditdm_jax.rl.reading import Reader
from auditdm_jax.rl.records import attempt_of
from auditdm_jax.rl.scoring import Scorer
from auditdm_jax.rl.sight import Sight
from auditdm_jax.stages import remote
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.pools import InMemoryPool
from auditdm_jax.stages.run import TRAIN
from auditdm_jax.stages.truth import ModeKey

SEARCH: draws.Walk = ("search",)  # The walk that measures search success.
CONTROL = "control"  # The arm of the random questions at equal queries.
FRESH = "fresh"  # The arm of the probes that modes are measured on.
_SEARCH_ROWS = 16  # Images in a chunk of it, for each sample of a group.


# ----------------------------------------------------------------------------------- in training


def train_auditor(ctx: Context, bank: ModelBank) -> trainer.TrainResult:
  """Trains by GRPO for as many steps as the round has.

  Args:
    ctx: the run's config and models.
    bank: target and references.

  Raises:
    UserError: too few groups are live.
  """
  vlm, settings, models = ctx.models.auditor, ctx.settings, ctx.models
  learner = Learner(
    vlm.config,
    settings.grpo,
    optim=settings.optim,
    mesh=mesh_lib.make_mesh(settings.mesh),
    rollout_mesh=None if models.rollout_mesh is models.mesh else models.rollout_mesh,
    rules=[(regex, tuple(spec)) for regex, spec in settings.rules],
    params=vlm.params,
    banned=vlm.writer().unsampled_ids(vlm.stop_ids),
  )
  harvest = tuple(s for s in settings.checkpoints.harvest if s < settings.optim.steps)
  s = settings
  return trainer.train(
    dataclasses.replace(settings.checkpoints, harvest=harvest),
    make_rollout(ctx, bank, run=ctx.round.draws, learner=learner),
    learner,
    auditor=vlm,
    workdir=ctx.folder.path,
    name=TRAIN,
    # What decides a training run, in addition to what the trainer knows.
    identity=[
      ctx.written.models,  # Not where a repaired target lies; its round is in the draws' name.
      s.world,
      s.pool,
      ctx.written.bank,
      s.judge,
      s.taxonomy,
      *remote.decisive(s.endpoints),
    ],
    stop=settings.stop,
    wandb=settings.wandb,
  )


def make_rollout(ctx: Context, bank: ModelBank, *, run: str, learner: Learner) -> rollout.Rollout:
  """Connects the auditor, the image service and the models that answer.

  Args:
    ctx: the run's config and models.
    bank: target and references.
    run: the name of the training run; its randomness depends on it.
    learner: takes the batches.
  """
  mesh = learner.rollout_mesh if learner.rollout_mesh.size > 1 else None
  models = ctx.models
  sight = make_sight(ctx, trains=learner.trains_tower)
  prober = make_prober(ctx, sight, pool=ctx.pool("images"), mesh=mesh)
  config, before = prober.config, None
  if config.surrogate.proposals and config.surrogate.untrained:
    before = models.auditor_params(None, dtype=models.config.dtype)
  return build.rollout(
    ctx.settings.grpo,
    learner,
    run=run,
    prober=prober,
    scorer=make_scorer(ctx, bank),
    gauges=Gauges(config.gauges, bank, seed=config.seed, load=ctx.images, heldout=models.heldout),
    before=before,
  )


def make_sight(ctx: Context, *, trains: bool) -> Sight:
  """Connects the auditor's tower, which may train, and the reader of its questions."""
  models, reader = ctx.models, None
  if models.reader is not None:
    reader = Reader(models.reader, models.cache, load=ctx.images)
  return Sight(models.auditor, models.cache, load=ctx.images, trains=trains, reader=reader)


def make_prober(
  ctx: Context,
  sight: Sight,
  *,
  pool: InMemoryPool,
  mesh: Mesh | None,
  prompts: Mapping[str, int] | None = None,
  shots: Sequence[tuple[str, str]] = (),
) -> Prober:
  """Connects the auditor and the image service.

  Args:
    ctx: the run's config and models.
    sight: what the auditor sees of an image.
    pool: the images that it looks at.
    mesh: the one that its params lie on.
    prompts: {strategy: prompts}, default the config's.
    shots: (question, consensus) of finds that are shown before the task of asking.

  Raises:
    UserError: the image service can make no image of the pool's sizes.
  """
  config = _rollout_config(ctx)
  if prompts is not None:
    config = dataclasses.replace(config, prompts=dict(prompts))
  if shots:
    asks = (s for s, _ in config.active() if s.turns[0].kind == "question")
    tasks = {s.task(0): _with_shots(config.task_text(s, 0), shots) for s in asks}
    config = dataclasses.replace(config, task=config.task | tasks)
  drawing = None
  if any(strategy.makes for strategy, _ in config.active()):
    client = image_client(ctx, pool)
    drawing = Drawing(client, keep=ctx.images.put, deadline_s=config.deadline_s)
  return build.prober(
    config,
    ctx.settings.grpo,
    auditor=ctx.models.auditor,
    pool=pool,
    sight=sight,
    drawing=drawing,
    well_formed=ctx.world.well_formed,
    mesh=mesh,
  )


def _with_shots(task: str, shots: Sequence[tuple[str, str]]) -> str:
  """Puts finds before a task, as examples (ours)."""
  lines = "\n".join(f"- {question} ({answer})" for question, answer in shots)
  return (
    f"Questions that the model answered wrongly before, with the right answers:\n{lines}\n{task}"
  )


def image_client(ctx: Context, pool: InMemoryPool) -> ImageClient:
  """Returns the client of the image service.

  Raises:
    UserError: the service can make no image of the pool's sizes.
  """
  images = (pool.image(i) for i in range(len(pool)))
  fit.check(ctx.client.info(), ((image.shape[1], image.shape[0]) for image in images))
  return ctx.client


def make_scorer(ctx: Context, bank: ModelBank, *, full: bool = False) -> Scorer:
  """Connects the models that answer, and what the world can tell.

  Args:
    ctx: the run's config and world.
    bank: target and references.
    full: ask all models about every probe, whatever the cascade.
  """
  key, config = ModeKey(ctx.seeds), _rollout_config(ctx)
  return Scorer(
    dataclasses.replace(config, full_share=1.0) if full else config,
    ctx.settings.reward,
    bank=bank,
    load=ctx.images,
    key_of=lambda question, consensus: (key.of(question, consensus),),
    paraphrase=ctx.world.paraphrase,
    oracle=ctx.world.oracle,
  )


def _rollout_config(ctx: Context) -> draws.RolloutConfig:
  if "seed" in ctx.config.to_dict()["rollout"]:
    raise UserError("config.rollout.seed: a run has one seed, config.seed")
  return dataclasses.replace(ctx.settings.rollout, seed=ctx.settings.seed)


# ------------------------------------------------------------------------------- stored auditors


class StoredAuditors:
  """The auditors of a run: one at a time is on the devices, in the dtype of the computation.

  Those that were there wait on the host.

  Attributes:
    sight: what they see of an image.
  """

  def __init__(self, ctx: Context):
    """Takes the run's folder and models."""
    models = ctx.models
    trains = ctx.settings.optim.trains_tower(tree.flatten(models.auditor.params))
    self.sight = make_sight(ctx, trains=trains)
    self._ctx = ctx
    self._waiting: dict[int | None, Any] = {}
    self._step, self._params = None, None  # the one on the devices

  def take(self, step: int | None) -> Any:
    """Returns the params of an auditor by its updates; None = untrained."""
    models = self._ctx.models
    if self._params is None or self._step != step:
      self._params = None  # First, or both would be there.
      if step not in self._waiting:
        folder = None if step is None else self._ctx.folder.auditors()[step]
        params = models.auditor_params(folder, dtype=models.config.dtype)
        self._waiting[step] = runtime.fetch(params)
      self._step, self._params = step, models.place(self._waiting[step])
    return self._params


class Asker:
  """Asks with a stored auditor: one probe per image, strategies in the config's shares."""

  def __init__(
    self,
    ctx: Context,
    bank: ModelBank,
    *,
    pool: InMemoryPool,
    prompts: Mapping[str, int] | None = None,
    full: bool = False,
  ):
    """Takes the bank, the images to ask about and {strategy: share}, default the config's.

    With `full`, all models are asked about every probe.
    """
    self._ctx, self._pool, self._stored = ctx, pool, StoredAuditors(ctx)
    mesh = ctx.models.rollout_mesh
    self._prober = make_prober(ctx, self._stored.sight, pool=pool, mesh=mesh, prompts=prompts)
    self._scorer = make_scorer(ctx, bank, full=full)

  def ask(
    self,
    step: int | None,
    n: int,
    *,
    arm: str,
    walk: draws.Walk,
    asked: Collection[str] | None = None,
    label: str = "",
  ) -> list[Attempt]:
    """Returns `n` attempts, made in chunks of one static shape: a pure function of the arguments.

    Args:
      step: updates of the auditor, None = untrained.
      n: number of attempts.
      arm: name in the records.
      walk: the name of the draws; which images are looked at follows from it, and not from `step`.
      asked: ids of the probes that were asked before. Instead of these and of repeats another is
        drawn, up to twice as many as wanted; an auditor that still repeats itself may.
      label: of the progress line; "" = none.
    """
    scale = self._ctx.settings.grpo.group_size
    counts = {s: k * scale for s, k in self._prober.config.counts().items()}
    seed = self._ctx.settings.seed
    out: list[Attempt] = []
    chunk = 0
    with progress_of(n, label) as show:
      while len(out) < n:
        prompts = draws.draw_prompts(counts, seed=seed, walk=walk, step=chunk, size=len(self._pool))
        done = self._prober.generate(
          self._stored.take(step), prompts, timer=metrics.Timer(), group=1
        )
        # What is invalid is asked again, but not for ever.
        probing.check_valid(done, self._prober.config.max_invalid, step=chunk)
        if asked is not None and chunk * sum(counts.values()) < 2 * n:
          done = unasked(done, {*asked, *(a.probe.probe_id for a in out)})
        # A share of every strategy when not all are wanted.
        keep = streams.rng(seed, "kept", *walk, chunk).permutation(len(done))[: n - len(out)]
        done = self._scorer.judge([done[i] for i in sorted(keep)])
        out += [attempt_of(t, arm=arm, step=step or 0) for t in done if not t.invalid]
        chunk += 1
        show(len(out))
    return out

  @property
  def chunk_size(self) -> int:
    """Questions that are drawn at once."""
    return sum(self._prober.config.counts().values()) * self._ctx.settings.grpo.group_size

  def draw(
    self,
    step: int | None,
    chunk: int,
    *,
    arm: str,
    keep: Callable[[Sequence[Attempt]], Sequence[bool]],
  ) -> list[Attempt]:
    """Draws one chunk of questions and asks those that `keep` wants: a pure function of these.

    Args:
      step: updates of the auditor, None = untrained.
      chunk: which.
      arm: name in the records, and of the draws.
      keep: is told the attempts that would be made.
    """
    scale, seed = self._ctx.settings.grpo.group_size, self._ctx.settings.seed
    counts = {s: k * scale for s, k in self._prober.config.counts().items()}
    prompts = draws.draw_prompts(
      counts, seed=seed, walk=(arm, "more"), step=chunk, size=len(self._pool)
    )
    done = self._prober.generate(self._stored.take(step), prompts, timer=metrics.Timer(), group=1)
    done = [t for t in done if t.question and not t.invalid]
    wanted = keep([attempt_of(t, arm=arm, step=step or 0) for t in done])
    judged = self._scorer.judge([t for t, yes in zip(done, wanted, strict=True) if yes])
    return [attempt_of(t, arm=arm, step=step or 0) for t in judged if t.verdict]


def search_asker(ctx: Context, bank: ModelBank) -> Asker:
  """Returns an asker of one question about each image of the fresh split.

  GRPO never trains on these. With the walk `SEARCH`, two auditors see the same images with the same
  random numbers.
  """
  return Asker(ctx, bank, pool=ctx.pool("fresh"), prompts={"question": _SEARCH_ROWS})


def unasked(trajectories: Sequence[Trajectory], asked: set[str]) -> list[Trajectory]:
  """Returns those whose question was not asked, each once; replies without a question stay."""
  out = []
  for t in trajectories:
    probe_id = attempt_of(t).probe.probe_id
    if not t.question or probe_id not in asked:
      asked.add(probe_id)
      out.append(t)
  return out


# ---------------------------------------------------------------------- the data set's questions


class RandomQuestions:
  """The data set's own questions in a seeded order, each once: the control of an auditor."""

  def __init__(self, pool: InMemoryPool, seed: int, arm: str):
    """Takes the pool, the seed of the run, and the name of who asks."""
    asked = pool.asked()
    order = streams.rng(seed, "random questions", arm).permutation(len(asked))
    self._asked, self._at = [asked[int(i)] for i in order], 0

  def __len__(self) -> int:
    return len(self._asked)

  @property
  def left(self) -> int:
    """How many were not skipped."""
    return max(len(self._asked) - self._at, 0)

  def next(self, n: int) -> list[tuple[int, str]]:
    """Returns the next `n` (image number, question); the last ones if there are fewer."""
    return self._asked[self._at : self._at + n]

  def around(self, start: int, n: int) -> list[tuple[int, str]]:
    """Returns `n` of them from any place on, after the last one the first; each at most once."""
    size = len(self._asked)
    return [self._asked[(start + i) % size] for i in range(min(n, size))]

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
  """Puts (image number, question) pairs to the bank.

  Args:
    ctx: the run's images and seed.
    bank: target and references.
    pool: the images that the numbers are of.
    asked: the pairs.
    arm: name in the records.
    label: of the progress line; "" = none.
    cascade: overrides the bank's config.
  """
  ids = [pool.image_id(i) for i, _ in asked]
  with progress_of(len(asked), label) as show:
    verdicts = bank.verdicts(
      ctx.images,
      [q for _, q in asked],
      image_ids=ids,
      cascade=cascade,
      progress=lambda done, _: show(done),
    )
  rows = zip(unanswered(ctx, pool, asked, arm=arm), verdicts, strict=True)
  return [dataclasses.replace(attempt, verdict=verdict) for attempt, verdict in rows]


@contextlib.contextmanager
def progress_of(total: int, label: str) -> Iterator[Callable[[int], None]]:
  """Yields what is told how much is done; it shows that under a label, and without one nothing."""
  if not label:
    yield lambda done: None
    return
  with metrics.Progress(total, label) as progress:
    yield progress.update


def unanswered(
  ctx: Context, pool: InMemoryPool, asked: Sequence[tuple[int, str]], *, arm: str
) -> list[Attempt]:
  """Returns the attempts that (image number, question) pairs would be."""
  return [
    Attempt(
      probe=Probe.make(
        pool.image_id(i), question, arm=arm, source=f"{pool.split}/{i}", seed=ctx.settings.seed
      ),
      verdict=None,
    )
    for i, question in asked
  ]


def random_control(ctx: Context, n: int) -> list[Attempt]:
  """Puts `n` random questions of the pool to the audited target (all there are, if fewer).

  All models answer: what the target knew has a consensus too, and is trained on.
  """
  pool = ctx.pool("images")
  asked = RandomQuestions(pool, ctx.settings.seed, CONTROL).next(n)
  bank = ctx.models.bank()
  return ask_questions(ctx, bank, pool, asked, arm=CONTROL, label="random questions", cascade=False)


def fresh_attempts(ctx: Context, *, bank: ModelBank | None = None) -> list[Attempt]:
  """Puts questions about the fresh split to a target and all references.

  They are the data set's, or `discover.search_probes` of the auditor's, at most
  `taxonomy.fresh.rest`: see `stages.fresh`, which asks more about modes.

  Args:
    ctx: the run's config and models.
    bank: target and references; None = the audited target.
  """
  pool, bank = ctx.pool("fresh"), bank or ctx.models.bank()
  config = ctx.settings.taxonomy.fresh
  if asks_data_set(ctx):
    asked = RandomQuestions(pool, ctx.settings.seed, FRESH).next(config.rest)
    return ask_questions(ctx, bank, pool, asked, arm=FRESH, label="fresh probes", cascade=False)
  n, step = min(config.rest, ctx.settings.discover.search_probes), ctx.settings.optim.steps or None
  asker = fresh_asker(ctx, bank)
  drawn = asker.ask(step, n, arm=FRESH, walk=(FRESH,), asked=(), label="fresh probes")
  return [a for a in drawn if a.verdict]


def asks_data_set(ctx: Context) -> bool:
  """Whether the data set proposes the fresh questions; else the auditor does."""
  return ctx.settings.taxonomy.fresh.proposer != "auditor" and bool(ctx.pool("fresh").asked())


def fresh_asker(ctx: Context, bank: ModelBank) -> Asker:
  """Returns an asker of questions about the fresh split, which all models answer."""
  return Asker(ctx, bank, pool=ctx.pool("fresh"), prompts={"question": _SEARCH_ROWS}, full=True)
