# SPDX-License-Identifier: Apache-2.0
"""train: trains the auditor with GRPO against the target and the references.

The stored auditors then ask: `Asker` is their inference pass over the pool.
"""

from collections.abc import Collection, Sequence
import dataclasses
import pathlib
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from auditdm_jax.audit.answer import ModelBank
from auditdm_jax.audit.probe import Probe, Verdict
from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.core import metrics, runtime, store, tree
from auditdm_jax.core.config import UserError
from auditdm_jax.images import fit
from auditdm_jax.images.client import ImageClient
from auditdm_jax.models import preprocess
from auditdm_jax.rl import rollout, trainer
from auditdm_jax.rl.batch import Trajectory
from auditdm_jax.rl.learner import Learner
from auditdm_jax.stages.attempts import Attempt, ModeKey
from auditdm_jax.stages.context import Context
from auditdm_jax.vlm import load_vlm

NAME = "train"
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
  made = make_rollout(ctx, bank, learner=learner)
  return trainer.train(
    cfg, made, learner, auditor=vlm, workdir=ctx.workdir, name=name,
    identity=[getattr(settings, section) for section in _DECIDE],
  )  # fmt: skip


def make_rollout(
  ctx: Context, bank: ModelBank, *, learner: Learner | None = None
) -> rollout.Rollout:
  """Connects the sampler, the image service and the models.

  A learner says how batches are laid out; without one the params are those of `Asker`.
  """
  cfg = dataclasses.replace(ctx.settings.rollout, seed=ctx.settings.seed)
  if "seed" in ctx.config.rollout:
    raise UserError("config.rollout.seed: a run has one seed, config.seed")
  key, vlm, grpo_cfg = ModeKey(ctx.seeds), ctx.auditor, ctx.settings.grpo
  needs_images = any(s != "question" for s in cfg.counts())
  if learner is None:
    trains_tower = ctx.settings.optim.trains_tower(tree.flatten(vlm.params))
  else:
    trains_tower = learner.trains_tower

  def features(params: Any, ids: Sequence[str]) -> np.ndarray:
    if not trains_tower:
      return ctx.cache.features(vlm, ids, ctx.images)
    unique = list(dict.fromkeys(ids))
    now = vlm.with_params(params).encode([ctx.images(i) for i in unique])
    return now[[unique.index(i) for i in ids]]

  def pixels(ids: Sequence[str]) -> np.ndarray:
    size = vlm.cfg.vision.image_size
    return preprocess.preprocess([ctx.images(i) for i in ids], size=size, how=vlm.pixels)

  layout = {"mesh": ctx.rollout_mesh}
  if learner is not None:
    mesh = learner.rollout_mesh
    layout = {
      "padded": learner.padded,
      "per_row": grpo_cfg.group_size if learner.config.optim.shared_prefix else 1,
      "pixels": pixels if trains_tower else None,
      "mesh": mesh if mesh.size > 1 else None,
    }
  heldout = cfg.gauges.heldout
  return rollout.Rollout(
    cfg,
    grpo_cfg,
    ctx.settings.reward,
    auditor=vlm,
    pool=ctx.pool("images"),
    bank=bank,
    features=features,
    load=ctx.images,
    keep=ctx.images.put,
    client=_image_client(ctx) if needs_images else None,
    key_of=lambda question, consensus: (key.of(question, consensus),),
    well_formed=ctx.world.well_formed,
    paraphrase=ctx.world.paraphrase,
    oracle=ctx.world.oracle,
    heldout=ctx.answering(ctx.load(heldout)) if heldout else None,
    **layout,
  )


def _image_client(ctx: Context) -> ImageClient:
  """The client of the image service; raises UserError if that can be asked for no image."""
  pool = ctx.pool("images")
  images = (pool.image(i) for i in range(len(pool)))
  fit.check(ctx.client.info(), ((image.shape[1], image.shape[0]) for image in images))
  return ctx.client


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
  with store.reading(auditors(ctx)[step]) as folder:
    return load_vlm(folder, mesh=ctx.rollout_mesh, dtype=dtype).params


class Asker:
  """Asks with a stored auditor: one probe per image, strategies in the config's shares.

  One auditor at a time is on the devices, in the dtype of the computation; others wait on the host.
  """

  def __init__(self, ctx: Context, bank: ModelBank):
    self._ctx, self._rollout = ctx, make_rollout(ctx, bank)
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
    stream: int,
    strategies: dict[str, int] | None = None,
    asked: Collection[str] | None = None,
  ) -> list[Attempt]:
    """`n` attempts, in chunks of one static shape; a pure function of the arguments.

    Args:
      step: updates of the auditor, None = untrained.
      n: how many.
      arm: name in the records.
      stream: separates draws; which images are looked at follows from it.
      strategies: {strategy: share}, default the config's rollout mix.
      asked: ids of the probes that were asked before. Instead of these and of repeats another is
        drawn, up to twice as many as wanted; an auditor that still repeats itself may.
    """
    counts = self._rollout.config.counts() if strategies is None else strategies
    scale = self._ctx.settings.grpo.group_size
    counts = {s: k * scale for s, k in counts.items()}
    seed, size = self._ctx.settings.seed, len(self._ctx.pool("images"))
    out: list[Attempt] = []
    chunk = 0
    while len(out) < n:
      draw = stream * 101 + chunk
      prompts = rollout.draw_prompts(counts, seed=seed + 1, step=draw, size=size)
      done = self._rollout.generate(
        self._take(step), prompts, step=1_000_000 + draw, timer=metrics.Timer(), group=1
      )
      self._rollout.check(done, draw)  # What is invalid is asked again, but not for ever.
      if asked is not None and chunk * sum(counts.values()) < 2 * n:
        done = _unasked(done, {*asked, *(a.probe.probe_id for a in out)})
      # A share of every strategy when not all are wanted.
      keep = sorted(range(len(done)), key=lambda i: i * 7919 % len(done))[: n - len(out)]
      done = self._rollout.judge([done[i] for i in sorted(keep)])
      out += [_attempt(t, arm=arm, step=step or 0) for t in done if not t.invalid]
      chunk += 1
    return out


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
