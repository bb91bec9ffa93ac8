# SPDX-License-Identifier: Apache-2.0
"""train: trains the auditor with GRPO against the target and the references.

The stored auditors then ask: `Asker` is their inference pass over the pool.
"""

from collections.abc import Collection, Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from auditdm_jax.audit.answer import ModelBank
from auditdm_jax.audit.probe import Probe, Verdict
from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.core import metrics, paths, runtime, streams, tree
from auditdm_jax.core.config import UserError
from auditdm_jax.rl import build, draws, probing, rollout, trainer
from auditdm_jax.rl.batch import Trajectory
from auditdm_jax.rl.drawing import Drawing
from auditdm_jax.rl.gauges import Gauges
from auditdm_jax.rl.learner import Learner
from auditdm_jax.rl.probing import Prober
from auditdm_jax.rl.scoring import Scorer
from auditdm_jax.rl.sight import Sight
from auditdm_jax.stages.attempts import Attempt, ModeKey
from auditdm_jax.stages.context import Context, InMemoryPool
from auditdm_jax.vlm_loading import load_vlm

NAME = "train"
SEARCH: draws.Walk = ("search",)  # The walk that measures search success.
_SEARCH_ROWS = 16  # Images in a chunk of it, for each sample of a group.
# Sections that decide what a training is, beside those that the trainer knows.
_DECIDE = ("models", "world", "pool", "bank", "judge", "taxonomy")


def main(config: ConfigDict, workdir: pathlib.Path) -> int:
  with Context(config, workdir, "train") as ctx:
    run(ctx)
  return 0


def run(ctx: Context) -> dict:
  """Trains to config.optim.steps; resumes."""
  if (found := ctx.done(NAME)) is not None:
    return found
  result = train_auditor(ctx, ctx.bank(), name=NAME, steps=ctx.settings.optim.steps)
  return ctx.finish(
    NAME,
    {
      "steps": result.steps, "completions": result.completions, "probes": result.probes,
      "best": result.best,
    },
  )  # fmt: skip


def train_auditor(
  ctx: Context, bank: ModelBank, *, name: str, steps: int, start: Any = None
) -> trainer.TrainResult:
  """One GRPO training, from the config's auditor or from params `start`."""
  vlm, settings = ctx.auditor, ctx.settings
  learner = Learner(
    vlm.cfg, settings.grpo, optim=dataclasses.replace(settings.optim, steps=steps),
    mesh=mesh_lib.make_mesh(settings.mesh),
    rollout_mesh=None if ctx.rollout_mesh is ctx.mesh else ctx.rollout_mesh,
    rules=[(regex, tuple(spec)) for regex, spec in settings.rules],
    params=vlm.params if start is None else start,
    banned=vlm.tokenizer.unsampled_ids(vlm.stop_ids),
  )  # fmt: skip
  harvest = tuple(s for s in settings.checkpoints.harvest if s < steps)
  cfg = dataclasses.replace(settings.checkpoints, harvest=harvest)
  made = make_rollout(ctx, bank, run=name, learner=learner)
  return trainer.train(
    cfg, made, learner, auditor=vlm, workdir=ctx.workdir, name=name,
    identity=[getattr(settings, section) for section in _DECIDE],
  )  # fmt: skip


def make_rollout(ctx: Context, bank: ModelBank, *, run: str, learner: Learner) -> rollout.Rollout:
  """Connects the auditor, the image service and the models that answer.

  Args:
    ctx: the run's config and models.
    bank: target and references.
    run: the name of the training run; its randomness depends on it.
    learner: takes the batches.
  """
  mesh = learner.rollout_mesh if learner.rollout_mesh.size > 1 else None
  sight = Sight(ctx.auditor, ctx.cache, load=ctx.images, trains=learner.trains_tower)
  prober = make_prober(ctx, sight, pool=ctx.pool("images"), mesh=mesh)
  cfg = prober.config
  heldout = ctx.answering(ctx.load(cfg.gauges.heldout)) if cfg.gauges.heldout else None
  return build.rollout(
    ctx.settings.grpo,
    learner,
    run=run,
    prober=prober,
    scorer=make_scorer(ctx, bank),
    gauges=Gauges(cfg.gauges, bank, seed=cfg.seed, load=ctx.images, heldout=heldout),
  )


def make_prober(
  ctx: Context,
  sight: Sight,
  *,
  pool: InMemoryPool,
  mesh: Mesh | None,
  prompts: Mapping[str, int] | None = None,
) -> Prober:
  """Connects the auditor and the image service.

  Args:
    ctx: the run's config and models.
    sight: what the auditor sees of an image.
    pool: the images that it looks at.
    mesh: the one that its params lie on.
    prompts: {strategy: prompts}, default the config's.
  """
  cfg = _rollout_config(ctx)
  if prompts is not None:
    cfg = dataclasses.replace(cfg, prompts=dict(prompts))
  drawing = None
  if any(strategy.makes for strategy, _ in cfg.active()):
    drawing = Drawing(ctx.client, keep=ctx.images.put, deadline_s=cfg.deadline_s)
  return build.prober(
    cfg, ctx.settings.grpo, auditor=ctx.auditor, pool=pool, sight=sight, drawing=drawing,
    well_formed=ctx.world.well_formed, mesh=mesh,
  )  # fmt: skip


def make_scorer(ctx: Context, bank: ModelBank) -> Scorer:
  """Connects the models that answer, and what the world can tell."""
  key = ModeKey(ctx.seeds)
  return Scorer(
    _rollout_config(ctx), ctx.settings.reward, bank=bank, load=ctx.images,
    key_of=lambda question, consensus: (key.of(question, consensus),),
    paraphrase=ctx.world.paraphrase, oracle=ctx.world.oracle,
  )  # fmt: skip


def _rollout_config(ctx: Context) -> draws.RolloutConfig:
  if "seed" in ctx.config.rollout:
    raise UserError("config.rollout.seed: a run has one seed, config.seed")
  return dataclasses.replace(ctx.settings.rollout, seed=ctx.settings.seed)


def auditors(ctx: Context) -> dict[int, pathlib.Path]:
  """The stored auditors that discovery harvests from, by number of updates."""
  root = ctx.workdir / "auditors" / NAME
  found = {int(p.name): p for p in sorted(root.glob("*")) if (p / "config.json").exists()}
  if not found:
    raise UserError(f"{root}: no trained auditor; run the stage train first")
  return found


def load_attempts(ctx: Context, name: str = NAME) -> list[Attempt]:
  """Every completion of a GRPO training as an attempt, but for invalid ones (nobody's fault)."""
  rows = ctx.records(f"records/{name}").read(trainer.COMPLETIONS)
  # Shard by shard; each is in this order.
  rows.sort(key=lambda r: (r["step"], r["prompt_id"], r["sample"]))
  out = []
  for r in rows:
    if r["invalid"]:
      continue
    probe = Probe.make(
      r["image_id"] or r["source_image_id"], r["question"], strategy=r["strategy"], arm=name,
      source_image_id=r["source_image_id"], instruction=r["instruction"], caption=r["caption"],
      seed=r["image_seed"], step=r["step"],
    )  # fmt: skip
    out.append(Attempt(probe, Verdict.from_dict(r["verdict"]) if r["verdict"] else None))
  return out


def stored(ctx: Context, step: int | None, *, dtype: str = "float32") -> Any:
  """Parameters of the untrained auditor (None) or of the one after `step` updates, on the devices.

  They are split as those of the models that answer.
  """
  if step is None:
    return load_vlm(ctx.models.auditor, mesh=ctx.rollout_mesh, dtype=dtype).params
  with paths.reading(auditors(ctx)[step]) as folder:
    return load_vlm(folder, mesh=ctx.rollout_mesh, dtype=dtype).params


class Asker:
  """Asks with a stored auditor: one probe per image, strategies in the config's shares.

  One auditor at a time is on the devices, in the dtype of the computation; others wait on the host.
  """

  def __init__(
    self,
    ctx: Context,
    bank: ModelBank,
    *,
    pool: InMemoryPool,
    prompts: Mapping[str, int] | None = None,
  ):
    """Takes the bank, the images to ask about and {strategy: share}, default the config's."""
    self._ctx, self._pool = ctx, pool
    trains = ctx.settings.optim.trains_tower(tree.flatten(ctx.auditor.params))
    sight = Sight(ctx.auditor, ctx.cache, load=ctx.images, trains=trains)
    self._prober = make_prober(ctx, sight, pool=pool, mesh=ctx.rollout_mesh, prompts=prompts)
    self._scorer = make_scorer(ctx, bank)
    self._waiting: dict[int | None, Any] = {}
    self._step, self._params = None, None  # the one on the devices

  def _take(self, step: int | None) -> Any:
    if self._params is None or self._step != step:
      self._params = None  # First, or both would be there.
      if step not in self._waiting:
        self._waiting[step] = runtime.fetch(stored(self._ctx, step, dtype=self._ctx.models.dtype))
      self._step, self._params = step, self._ctx.place(self._waiting[step])
    return self._params

  def ask(
    self,
    step: int | None,
    n: int,
    *,
    arm: str,
    walk: draws.Walk,
    asked: Collection[str] | None = None,
  ) -> list[Attempt]:
    """`n` attempts, in chunks of one static shape; a pure function of the arguments.

    Args:
      step: updates of the auditor, None = untrained.
      n: how many.
      arm: name in the records.
      walk: the name of the draws; which images are looked at follows from it, and not from `step`.
      asked: ids of the probes that were asked before. Instead of these and of repeats another is
        drawn, up to twice as many as wanted; an auditor that still repeats itself may.
    """
    scale = self._ctx.settings.grpo.group_size
    counts = {s: k * scale for s, k in self._prober.config.counts().items()}
    seed = self._ctx.settings.seed
    out: list[Attempt] = []
    chunk = 0
    while len(out) < n:
      prompts = draws.draw_prompts(counts, seed=seed, walk=walk, step=chunk, size=len(self._pool))
      done = self._prober.generate(self._take(step), prompts, timer=metrics.Timer(), group=1)
      # What is invalid is asked again, but not for ever.
      probing.check_valid(done, self._prober.config.max_invalid, step=chunk)
      if asked is not None and chunk * sum(counts.values()) < 2 * n:
        done = _unasked(done, {*asked, *(a.probe.probe_id for a in out)})
      # A share of every strategy when not all are wanted.
      keep = streams.rng(seed, "kept", *walk, chunk).permutation(len(done))[: n - len(out)]
      done = self._scorer.judge([done[i] for i in sorted(keep)])
      out += [_attempt(t, arm=arm, step=step or 0) for t in done if not t.invalid]
      chunk += 1
    return out


def search_asker(ctx: Context, bank: ModelBank) -> Asker:
  """Asks one question about each image of the fresh split, which GRPO never trains on.

  With the walk `SEARCH`, two auditors see the same images with the same random numbers.
  """
  return Asker(ctx, bank, pool=ctx.pool("fresh"), prompts={"question": _SEARCH_ROWS})


def _unasked(trajectories: Sequence[Trajectory], asked: set[str]) -> list[Trajectory]:
  """Those whose question was not asked, each once; replies without a question stay."""
  out = []
  for t in trajectories:
    probe_id = _probe(t).probe_id
    if not t.question or probe_id not in asked:
      asked.add(probe_id)
      out.append(t)
  return out


def _attempt(t: Trajectory, *, arm: str, step: int) -> Attempt:
  return Attempt(_probe(t, arm=arm, step=step), t.verdict)


def _probe(t: Trajectory, *, arm: str = "", step: int = 0) -> Probe:
  return Probe.make(
    t.image_id or t.source_image_id, t.question, strategy=t.strategy, arm=arm,
    source_image_id=t.source_image_id, instruction=t.fields.get("instruction"),
    caption=t.fields.get("caption"), seed=t.image_seed, step=step,
  )  # fmt: skip
