# SPDX-License-Identifier: Apache-2.0
"""Before a run spends anything: what its models, its image service and its questions are worth.

1. The models: endpoints answer and see, no two of target and references have the same weights,
   every model gives numbers, and a drawn world's target has the gaps that the world says. Of models
   that judge or verify only the weights are read.
2. The image service, if the run makes images: it is up, and it takes images of the pool's sizes.
3. Some questions of the pool go to all models: what they do with them, and how fast.

What is wrong ends the run with one line for each cause; what is wrong in 1 ends it at once. How the
target answers is a warning, which does not end it.
"""

from collections.abc import Mapping, Sequence
import itertools
import pathlib
import time
from typing import Literal

import rich.console
import rich.markup
import rich.table

from auditdm_jax.audit import preflight
from auditdm_jax.audit.answer import ModelBank
from auditdm_jax.audit.ask import Vlm, ask
from auditdm_jax.audit.preflight import Ensemble, Problem
from auditdm_jax.audit.rates import Rate
from auditdm_jax.core import runtime, wandb_log
from auditdm_jax.core.config import UserError
from auditdm_jax.images.backend import Info
from auditdm_jax.models import weights
from auditdm_jax.stages import asking
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.pools import InMemoryPool
from auditdm_jax.stages.results import Cost, Preflight

NAME = "preflight"
_PROMPTS = 16  # Images in a chunk of the auditor's questions, for each sample of a group.


def run(ctx: Context) -> Preflight | None:
  """Checks what a run depends on, once for each config; None if the config does not want it.

  Raises:
    UserError: something is wrong; one line for each cause.
  """
  if ctx.settings.wandb.project:
    wandb_log.library(ctx.settings.wandb)  # That it is missing is said now.
  if not ctx.settings.preflight.enabled:
    return None
  if (found := ctx.folder.done_now(NAME, Preflight)) is not None:
    return found
  return ctx.folder.finish(NAME, check(ctx))


def check(ctx: Context) -> Preflight:
  """Checks it now, whatever was found before, and prints what is found.

  Raises:
    UserError: something is wrong; one line for each cause.
  """
  config = ctx.settings.preflight
  ctx.models.prepare()
  bank, pool = ctx.models.bank(), ctx.pool("images")
  _stop_at([*_other_gaps(ctx), *_copies(ctx, bank), *_not_finite(ctx, bank, pool), *_damaged(ctx)])
  service = _service(ctx, pool)
  asked = _questions(ctx, bank, pool, config.questions)
  seconds = _seconds(ctx, bank, pool, asked, takes="pixels")
  attempts = asking.ask_questions(ctx, bank, pool, asked, arm=NAME, label=NAME, cascade=False)
  seconds |= _seconds(ctx, bank, pool, asked, takes="features")
  verdicts = [a.verdict for a in attempts if a.verdict is not None]
  ensemble = preflight.measure(
    [question for _, question in asked],
    verdicts,
    ctx.judge,
    images=[pool.image_id(i) for i, _ in asked],
    labels=_labels(pool, asked),
    rule=bank.config.rule,
  )
  speeds = {name: len(asked) / max(seconds[name], 1e-9) for name in ensemble.models}
  found = _judged(ctx, ensemble, speeds, service)
  if runtime.is_main():
    show(found)
  _stop_at(preflight.problems(ensemble, config))
  return found


def _stop_at(problems: Sequence[Problem]) -> None:
  if problems:
    raise UserError("\n".join(map(str, problems)))


# ------------------------------------------------------------------------------------- weights


def _copies(ctx: Context, bank: ModelBank) -> list[Problem]:
  """Looks for equal weights; only models whose parameters have the same shapes are read."""
  models = ctx.settings.models
  folders = {pathlib.Path(f).resolve().name: f for f in (models.target, *models.references)}
  shapes: dict[str, str] = {}
  for name, model in bank.vlms.items():
    if model.takes == "features" and name in folders:
      tree = weights.open_model(folders[name], dtype="bfloat16").tree
      shapes[name] = repr(sorted((path, leaf.shape) for path, leaf in tree.items()))
  alike = {name for name in shapes if list(shapes.values()).count(shapes[name]) > 1}
  hashes = {name: weights.content_hash(folders[name]) for name in shapes if name in alike}
  return [
    preflight.copied_weights((a, b), bank.target)
    for a, b in itertools.combinations(hashes, 2)
    if hashes[a] == hashes[b]
  ]


def _other_gaps(ctx: Context) -> list[Problem]:
  """Looks for a target of a drawn world whose planted gaps are not those that are looked for."""
  spec, gaps = ctx.settings.models.target, ctx.settings.world.gaps
  if ctx.models.target_is_remote or not gaps:
    return []
  recipe = ctx.models.weights.extras.get("recipe")
  own = recipe.get("gaps") if isinstance(recipe, dict) else None
  if not own or own == gaps:
    return []
  cause = f"config.world.gaps={gaps!r}, and the target {spec} has the gaps {own!r}"
  return [Problem(cause, "name a target with these gaps; pretrain makes them for any seed")]


def _not_finite(ctx: Context, bank: ModelBank, pool: InMemoryPool) -> list[Problem]:
  """Looks for models of this machine that give no numbers, the auditor among them."""
  models, image = ctx.models, [pool.image(0)]
  question = next(iter(pool.questions(0)), "What is in the image?")
  found = []

  def look(vlm: Vlm, name: str, role: str, prompt: str) -> None:
    if not vlm.is_finite(vlm.encode(image), prompt):
      cause = f"the {role} {name} gives NaN or infinite logits after {prompt!r}"
      remedy = "its weights are damaged or overflow config.models.dtype; take another checkpoint"
      found.append(Problem(cause, remedy))

  for name, model in bank.vlms.items():
    if model.takes == "features":
      role = "target" if name == bank.target else "reference"
      look(model, name, role, model.style.put(question))
  auditor = models.auditor.with_params(models.place(models.auditor.params))
  strategy, _ = ctx.settings.rollout.active()[0]
  look(auditor, auditor.name, "auditor", ctx.settings.rollout.task_text(strategy, 0))
  return found


def _damaged(ctx: Context) -> list[Problem]:
  """Looks at the weights of the models that are asked later, which need not be loaded for it."""
  settings = ctx.settings
  later = {
    "sibling": settings.models.sibling,
    "held-out model of config.rollout.gauges": settings.rollout.gauges.heldout,
    "reader of config.rollout.surrogate": settings.rollout.surrogate.reader,
    "model of config.judge": settings.judge.model,
    "model of config.verify": settings.verify.model,
    "paraphraser of config.verify": settings.verify.paraphraser,
  }
  elsewhere = {"", "auditor", *settings.endpoints}  # Nothing to read, or looked at already.
  found = []
  for role, spec in later.items():
    if spec in elsewhere:
      continue
    ctx.models.check_is_there(spec)
    if parameter := weights.not_finite(spec):
      cause = f"the {role} {spec} has NaN or infinite weights in {parameter}"
      found.append(Problem(cause, "its file is damaged; take another checkpoint"))
  return found


# --------------------------------------------------------------------------- service and questions


def _service(ctx: Context, pool: InMemoryPool) -> str:
  """Returns what the image service is and takes; "" if no strategy makes images.

  Raises:
    UserError: it is not there, or can make no image of the pool's sizes.
  """
  if not any(strategy.makes for strategy, _ in ctx.settings.rollout.active()):
    return ""
  return described(asking.image_client(ctx, pool).info())


def described(info: Info) -> str:
  """Returns in a line what an image service takes."""
  if info.sizes:
    sizes = ", ".join(f"{width}x{height}" for width, height in info.sizes)
  else:
    sizes = f"sides of {info.min_side} to {info.max_side}, multiples of {info.multiple}"
  fitted = "nothing else" if info.exact else "others are fitted"
  return f"{info.name} {info.revision}".strip() + f": {sizes}; {fitted}"


def _questions(ctx: Context, bank: ModelBank, pool: InMemoryPool, n: int) -> list[tuple[int, str]]:
  """Returns up to `n` different (image number, question): the data set's, else the auditor's.

  Raises:
    UserError: there are none.
  """
  source = asking.RandomQuestions(pool, ctx.settings.seed, NAME)
  if own := list(dict.fromkeys(source.next(len(source)))):
    return own[:n]
  asker = asking.Asker(ctx, bank, pool=pool, prompts={"question": _PROMPTS})
  probes = [a.probe for a in asker.ask(None, n, arm=NAME, walk=(NAME,))]
  number = {pool.image_id(i): i for i in range(len(pool))}
  asked = list(dict.fromkeys((number[p.image_id], p.question) for p in probes if p.question))
  if not asked:
    raise UserError(
      f"{pool.split} has no questions, and none of {n} replies of the auditor holds one; give the"
      " images questions (config.pool.questions), or the auditor another config.rollout.task"
    )
  return asked


def _labels(pool: InMemoryPool, asked: Sequence[tuple[int, str]]) -> list[tuple[str, ...]]:
  """Returns the data set's answers to each question, as far as it has some."""
  known = {
    (i, question): answers
    for i in {i for i, _ in asked}
    for question, answers in zip(pool.questions(i), pool.answers(i), strict=True)
  }
  return [known.get(pair, ()) for pair in asked]


def _seconds(
  ctx: Context,
  bank: ModelBank,
  pool: InMemoryPool,
  asked: Sequence[tuple[int, str]],
  *,
  takes: Literal["features", "pixels"],
) -> dict[str, float]:
  """Returns how long each model of a kind takes for all questions, images included.

  Call it before the questions are put to endpoints, which keep their replies, and after they were
  put to models of this machine, whose programs are then compiled.
  """
  images = list(dict.fromkeys(i for i, _ in asked))
  rows = [images.index(i) for i, _ in asked]
  pixels, questions = [pool.image(i) for i in images], [question for _, question in asked]
  seconds = {}
  for name, model in bank.vlms.items():
    if model.takes != takes:
      continue
    start = time.perf_counter()
    if model.takes == "features":
      ask(model, model.encode(pixels), questions, config=ctx.settings.bank, which=rows)
    else:
      ask(model, [pixels[row] for row in rows], questions, config=ctx.settings.bank)
    seconds[name] = time.perf_counter() - start
  return seconds


# ------------------------------------------------------------------------------ judgement and table


def _judged(
  ctx: Context, ensemble: Ensemble, speeds: Mapping[str, float], service: str
) -> Preflight:
  settings = ctx.settings
  probe = sum(1 / speed for speed in speeds.values())

  def cost(probes: int) -> Cost:
    return Cost(probes, probes * len(speeds), round(probes * probe, 3))

  repair = settings.rectify
  repairs = sum(settings.rounds.repairs(n + 1) for n in range(settings.rounds.count))
  completions = sum(settings.rollout.counts().values()) * settings.grpo.group_size
  return Preflight(
    ensemble=ensemble,
    answers_per_s={name: round(speed, 2) for name, speed in speeds.items()},
    service=service,
    step=cost(completions),
    training=cost(completions * settings.optim.steps),
    sweep=cost(settings.discover.probes),
    later=cost(
      (settings.rounds.count - 1) * (completions * settings.rounds.steps + settings.rounds.probes)
    ),
    unlabelled=cost(repair.unlabelled.probes * repairs if repair.bootstraps else 0),
    warnings=preflight.warnings(ensemble, settings.preflight),
  )


def show(found: Preflight) -> None:
  """Prints what was found as a table."""
  ensemble = found.ensemble
  table = rich.table.Table(title="Preflight", show_lines=False)
  table.add_column("what")
  for column in ("rate", "95 % interval", "k / n"):
    table.add_column(column, justify="right")

  def row(name: str, r: Rate, *, always: bool = True) -> None:
    if r.n and (r.k or always):
      low, high = r.ci95
      table.add_row(
        rich.markup.escape(name), f"{r.value:.3f}", f"{low:.3f} to {high:.3f}", f"{r.k:g} / {r.n}"
      )

  for name, heard in ensemble.models.items():
    words = "" if heard.words is None else f", {heard.words:.1f} words"
    row(f"{name}: answers{words}, {found.answers_per_s[name]:.3g}/s", heard.answered)
    row(f"{name}: is not sure", heard.unsure, always=False)
    row(f"{name}: cannot tell", heard.abstained, always=False)
    row(f"{name}: refuses", heard.refused, always=False)
    row(f"{name}: cut", heard.truncated, always=False)
    row(f"{name}: no reply", heard.silent, always=False)
    row(f"{name}: holds a shorter answer", heard.wordy, always=False)
  for pair in ensemble.pairs:
    row(f"{pair.models[0]} and {pair.models[1]} agree", pair.agreement)
  row("the references agree", ensemble.consensus)
  row("the target then disagrees", ensemble.disagreement)
  row("the judge cannot decide", ensemble.undecided, always=False)
  console = rich.console.Console(highlight=False, width=110)
  console.print(table)
  for warning in found.warnings:
    console.print(f"warning: {warning}", markup=False, soft_wrap=True)
  if found.service:
    console.print(f"image service {found.service}", markup=False)
  more = {"later rounds": found.later, "unlabelled images": found.unlabelled}
  costs = {"step": found.step, "all steps": found.training, "sweep": found.sweep}
  for name, cost in (costs | {name: cost for name, cost in more.items() if cost.probes}).items():
    console.print(
      f"{name}: {cost.probes} probes, up to {cost.answers} answers, about {cost.seconds:.3g} s"
      " of answering"
    )
