# SPDX-License-Identifier: Apache-2.0
"""pretrain: makes the tiny models of a drawn world from a config and seeds.

1. The vision tower learns to name what each cell holds (one linear head per attribute and token).
2. Every model gets that frozen tower and learns its own questions from its own seed; a target never
   sees the questions of its gaps; the auditor learns to write questions, edits and captions.
   Targets of a world with names start from one model, which never heard those that may be gaps.
3. Each model is measured on held-out scenes and saved with its recipe and accuracy.

A run that was killed goes on: models that are there stay, and the one in training continues from
its last checkpoint, bit for bit.

Reads:  the config only: images are drawn.
Writes: WORKDIR/models, a folder a model; WORKDIR/training while one is trained.
Costs:  training of a vision tower and of each model of the config.
"""

from collections.abc import Iterable
import dataclasses
import functools
import json
import pathlib
import shutil
from typing import Literal

import jax
from ml_collections import ConfigDict
import numpy as np
import optax
import optax.contrib

from auditdm_jax.core import checkpoint, jsonio, metrics
from auditdm_jax.core import tree as tree_lib
from auditdm_jax.core.config import UserError, build, check
from auditdm_jax.models import int8, multimodal, siglip, weights
from auditdm_jax.models.gemma import GemmaConfig
from auditdm_jax.models.multimodal import VlmConfig
from auditdm_jax.rectify import rows, supervised
from auditdm_jax.rectify.kept import flat, unflat
from auditdm_jax.scenes import gaps as gaps_lib
from auditdm_jax.scenes import mix as mix_lib
from auditdm_jax.scenes import questions
from auditdm_jax.scenes.mix import Mix
from auditdm_jax.scenes.needle import NEEDLE
from auditdm_jax.scenes.world import SCENES, Language
from auditdm_jax.stages import towers
from auditdm_jax.stages.worlds import gap_set
from auditdm_jax.text import prompts
from auditdm_jax.text.tokenizer import Tokenizer
from auditdm_jax.vlm import Vlm, load_vlm, save_vlm

TEMPLATES = {"paligemma": prompts.PALIGEMMA, "gemma3": prompts.GEMMA3_PLAIN}
LANGUAGES = {"scenes": SCENES, "needle": NEEDLE}
STOPS = {"paligemma": "<eos>", "gemma3": "<end_of_turn>"}


@dataclasses.dataclass(frozen=True)
class ModelSpec:
  """One model: architecture kind and size, seed, gaps, steps; `tasks` makes it an auditor.

  Each entry of `steps` is a training of its own, with its own schedule, on from the one before;
  in those of `drill`, which follow, questions are chosen by how hard their (skill, answer) is.
  `start` is the model that it goes on from, "" = random weights; `rate` multiplies the learning
  rates, so that what the other one knows is not forgotten. `least` is the fewest objects of a scene
  that it learns from, 0 = as a pool's images.
  """

  kind: Literal["paligemma", "gemma3"]
  seed: int
  steps: tuple[int, ...]
  gaps: str
  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  drill: tuple[int, ...] = ()
  start: str = ""
  rate: float = 1.0
  least: int = 0
  tasks: dict[str, float] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    check(vars(self), "model", "seed", least=0, below=2**32)  # JAX takes what is above for 0.
    check(vars(self), "model", "rate", above=0)
    check(vars(self), "model", "least", least=0)


@dataclasses.dataclass(frozen=True)
class MixSpec:
  """Scenes that are drawn, images per step, questions per image, steps of the curriculum."""

  scenes: int
  images: int
  per_image: int
  lookups: int
  searches: int


@dataclasses.dataclass(frozen=True)
class HeldoutSpec:
  """What accuracy is measured on."""

  seed: int
  scenes: int
  questions: int


@dataclasses.dataclass(frozen=True)
class OptimSpec:
  """Muon for the blocks' matrices, AdamW for the rest; warm-up, constant, linear decay.

  Muon (Jordan et al., 2024; optax.contrib) halves the loss of AdamW at equal steps here.

  Attributes:
    lr: of AdamW.
    muon_lr: of Muon.
    warmup: steps.
    decay: share of the steps in which the rate falls to 0.
    micro_rows: examples per micro-batch, 0 = all at once.
  """

  lr: float
  muon_lr: float
  warmup: int
  decay: float
  b2: float
  weight_decay: float
  clip: float
  micro_rows: int

  def build(self, steps: int, *, rate: float) -> optax.GradientTransformation:
    """Returns the optimiser of so many steps, its learning rates times `rate`."""
    muon = optax.chain(
      optax.contrib.scale_by_muon(weight_dimension_numbers=_muon_dimensions),
      optax.add_decayed_weights(self.weight_decay),
      optax.scale_by_learning_rate(self._schedule(rate * self.muon_lr, steps)),
    )
    adamw = optax.adamw(
      self._schedule(rate * self.lr, steps), b2=self.b2, weight_decay=self.weight_decay
    )

    def label(path, _):
      return "muon" if _summed(path) else "adamw"

    labels = functools.partial(jax.tree_util.tree_map_with_path, label)
    split = optax.multi_transform({"muon": muon, "adamw": adamw}, labels)
    return optax.chain(optax.clip_by_global_norm(self.clip), split)

  def _schedule(self, lr: float, steps: int) -> optax.Schedule:
    tail = int(self.decay * steps)
    return optax.join_schedules(
      [
        optax.linear_schedule(lr / self.warmup, lr, self.warmup),
        optax.constant_schedule(lr),
        optax.linear_schedule(lr, 0.0, tail),
      ],
      [self.warmup, steps - tail],
    )


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
  """The whole config.

  Attributes:
    world: "scenes" or "needle".
    only: name of the one model to make, or siglip; "" = all.
    output: folder of the models' folders; "" = <workdir>/models.
    made: folder of models, whose tower is copied and from whose models others start; "" = none.
    vision: of the tower that all share.
    mix: questions and scenes.
    optim: of the models.
    heldout: what they are measured on.
    checkpoint_every: steps of a model between two checkpoints.
    models: by name.
  """

  world: Literal["scenes", "needle"]
  only: str
  output: str
  made: str
  vision: towers.VisionSpec
  mix: MixSpec
  optim: OptimSpec
  heldout: HeldoutSpec
  checkpoint_every: int
  models: dict[str, ModelSpec]


def _name(path) -> str:
  """ "a/b/c" of a tree path; optax wraps a tree's masked parts, whose keys are kept."""
  return "/".join(str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey))


def _summed(path) -> tuple[int, ...] | None:
  """Axes that a decoder's matrix sums over; None for what is no matrix."""
  return int8.SUMMED.get(tuple(_name(path).split("/")[-2:]))


def _muon_dimensions(params):
  """Which axes of each layer-stacked matrix are its rows and columns."""

  def dimensions(path, w):
    if (summed := _summed(path)) is None:
      return None
    others = tuple(axis for axis in range(1, w.ndim) if axis not in summed)
    return optax.contrib.MuonDimensionNumbers(summed, others)

  return jax.tree_util.tree_map_with_path(dimensions, params)


def model_config(spec: ModelSpec, vision: siglip.SiglipConfig, tokenizer: Tokenizer) -> VlmConfig:
  """The VlmConfig of a tiny model, with the features of its full-size family."""
  gemma3 = spec.kind == "gemma3"
  text = GemmaConfig(
    vocab_size=tokenizer.vocab_size,
    width=spec.width,
    depth=spec.depth,
    mlp_dim=spec.mlp_dim,
    num_heads=spec.num_heads,
    num_kv_heads=spec.num_kv_heads,
    head_dim=spec.head_dim,
    query_scale=spec.head_dim**-0.5,
    rope_base=1_000_000.0 if gemma3 else 10_000.0,
    local_rope_base=10_000.0,
    rope_scale=8.0 if gemma3 else 1.0,
    window=2 * vision.num_patches,  # A question sees its image in all layers, as at full size.
    layer_is_local=tuple(i != spec.depth - 1 if gemma3 else i % 2 == 0 for i in range(spec.depth)),
    attn_softcap=0.0 if gemma3 else 50.0,
    final_softcap=0.0 if gemma3 else 30.0,
    qk_norm=gemma3,
    post_norms=True,
    post_norm_init=-0.6,
    unroll=spec.depth,
  )
  image_token = tokenizer.id("<image_soft_token>")
  return VlmConfig(kind=spec.kind, text=text, vision=vision, image_token_id=image_token)


# ------------------------------------------------------------------------------------- models


def train_model(
  name: str,
  spec: ModelSpec,
  settings: PretrainConfig,
  config,
  tokenizer,
  tower,
  *,
  start: Vlm | None = None,
  training: checkpoint.Checkpointer,
) -> Vlm:
  """Trains one model on its own mix and seed; the tower stays as it is.

  Args:
    name: of the model.
    spec: its recipe.
    settings: of all models.
    config: its architecture.
    tokenizer: of all models.
    tower: params of the vision tower.
    start: the model it goes on from; None = random weights.
    training: where it goes on from, and where its checkpoints go.

  Raises:
    UserError: the checkpoint there is of another recipe.
  """
  language = LANGUAGES[settings.world]
  if start is not None:
    params = start.params
  else:
    params = multimodal.init(config, towers.init_key(spec.seed))
    params["img"] = {**params["img"], **tower}
  model = Vlm(
    name=name,
    config=config,
    params=params,
    tokenizer=tokenizer,
    template=TEMPLATES[spec.kind],
    stop_ids=(tokenizer.id(STOPS[spec.kind]),),
  )
  mix = Mix(
    seed=spec.seed,
    scenes=settings.mix.scenes,
    images=settings.mix.images,
    per_image=settings.mix.per_image,
    gaps=gap_set(spec.gaps, language),
    language=language,
    least=spec.least,
  )
  features = encode_all(model, mix)
  captions = language.caption_words + 2
  layout = rows.RowLayout.of(
    model,
    length=language.cells + (captions if spec.tasks else questions.longest(language)) + 6,
    suffix=captions if spec.tasks else 3,
  )
  optim = settings.optim
  frozen = tuple(f"img/{name}" for name in tower)
  method = supervised.Method(
    micro_rows=optim.micro_rows, trains=lambda path: not path.startswith(frozen)
  )
  phases = [(n, False) for n in spec.steps] + [(n, True) for n in spec.drill]
  identity = _identity(spec, settings)
  first, done = 0, training.latest() or 0
  progress = metrics.Progress(sum(n for n, _ in phases), name, done=done)
  for steps, drill in phases:
    last = first + steps
    tx = optim.build(steps, rate=spec.rate)
    state = supervised.init_state(params, tx, method=method)
    hardness = _Hardness(questions.skills(language))
    if first < done <= last:
      state = _restored(training, state, hardness, identity)
    step = supervised.make_step(config, tx, method=method)
    for i in range(max(first, done), last):
      if spec.tasks:
        draw = mix.draw_tasks(i, spec.tasks)
      else:
        draw = mix.draw(
          i,
          _weights(None if start else i, settings.mix, hardness.skills, language),
          hardness=hardness if drill else None,
        )
      state, m = step(state, _batch(draw, features, layout, mix.images))
      hardness.update(draw, np.asarray(m["row_loss"]))
      progress.update(i + 1, loss=float(m["loss"]), hardest=hardness.hardest())
      if (i + 1) % settings.checkpoint_every == 0:
        training.save(i + 1, flat(state), {"identity": identity, "hardness": hardness.table()})
    params, first = state.params, last
  progress.close()
  return dataclasses.replace(model, params=jax.device_get(params))


def _identity(spec: ModelSpec, settings: PretrainConfig) -> str:
  """Returns what a checkpoint must be of, so that training goes on from it."""
  parts = [settings.world, spec, settings.mix, settings.optim, settings.vision]
  return jsonio.canonical_hash(parts)


def _restored(training, state, hardness: "_Hardness", identity: str):
  """Returns the latest checkpoint's state, and sets `hardness` to its values."""
  step, arrays, extras = training.restore(None, flat(state))
  if extras["identity"] != identity:
    raise UserError(
      f"{training.dir}: the checkpoint of step {step} is of another recipe; use another workdir or"
      " remove it"
    )
  hardness.load(extras["hardness"])
  return unflat(arrays, state)


class _Hardness:
  """Running mean of the loss per skill and per (skill, answer); 1 before the first."""

  def __init__(self, skills: Iterable[str]):
    self.skills = dict.fromkeys(skills, 1.0)
    self._answers: dict[tuple[str, str], float] = {}

  def __call__(self, skill: str, answer: str) -> float:
    return self._answers.get((skill, answer), 1.0)

  def update(self, draw: mix_lib.MixBatch, losses: np.ndarray) -> None:
    for skill, answer, loss in zip(draw.skills, draw.answers, losses, strict=True):
      if skill in self.skills:  # And not an auditor's task.
        self.skills[skill] += 0.02 * (float(loss) - self.skills[skill])
        old = self(skill, answer)
        self._answers[skill, answer] = old + 0.02 * (float(loss) - old)

  def table(self) -> dict[str, list]:
    """Returns all values, as JSON has them."""
    answers = [[skill, answer, value] for (skill, answer), value in self._answers.items()]
    return {"skills": list(self.skills.items()), "answers": answers}

  def load(self, table: dict[str, list]) -> None:
    """Takes the values of `table`."""
    self.skills = dict(table["skills"])
    self._answers = {(skill, answer): value for skill, answer, value in table["answers"]}

  def hardest(self) -> str:
    return max(self.skills, key=self.skills.__getitem__)


def _batch(
  draw: mix_lib.MixBatch, features, layout: rows.RowLayout, images: int
) -> supervised.Batch:
  """The rows of a draw; the number of unique images is padded to a static one."""
  unique, row = np.unique(draw.image, return_inverse=True)
  return supervised.Batch(
    images=features[np.resize(unique, images)],
    image=row.astype(np.int32),
    **layout.rows(draw.texts, draw.answers),
  )


def _weights(step, mix_section, hardness, language):
  """The curriculum's weights, then a third uniform and two thirds by how hard a skill still is.

  A model that knows the first lessons has no step of the curriculum: it would forget the others.
  """
  if step is not None:
    fixed = mix_lib.curriculum(
      step, language, lookups=mix_section.lookups, searches=mix_section.searches
    )
    if fixed is not None:
      return fixed
  total = sum(hardness.values())
  return {k: 0.35 / len(hardness) + 0.65 * v / total for k, v in hardness.items()}


def encode_all(model: Vlm, mix: Mix, *, chunk: int = 2000) -> np.ndarray:
  """f16[U,P,Dv] features of every scene of a mix."""
  parts = [
    model.encode(list(mix.pixels(i, min(i + chunk, mix.scenes)))).astype(np.float16)
    for i in range(0, mix.scenes, chunk)
  ]
  return np.concatenate(parts)


def measure(model: Vlm, section, gaps=(), language: Language = SCENES) -> dict[str, dict]:
  """Held-out accuracy {"n", "k", "rate"} overall, per skill, inside and outside the gaps."""
  mix = Mix(
    seed=section.seed,
    scenes=section.scenes,
    images=section.questions // 6,
    per_image=6,
    language=language,
  )
  draw = mix.draw(0, questions.half_names(language))
  features = encode_all(model, mix)
  got = model.answer_features(features[draw.image], draw.texts, max_new_tokens=3)
  tally: dict[str, list[int]] = {}
  for text, skill, want, have in zip(draw.texts, draw.skills, draw.answers, got, strict=True):
    program = questions.parse_question(text, language)
    gap = gaps_lib.match(gaps, program, want) if program else None
    groups = ["all", f"gap/{gap}" if gap else f"skill/{skill}", "gaps" if gap else "rest"]
    for group in groups:
      pair = tally.setdefault(group, [0, 0])
      pair[0] += have == want
      pair[1] += 1
  return {g: {"k": int(k), "n": n, "rate": round(k / n, 4)} for g, (k, n) in sorted(tally.items())}


def measure_auditor(
  model: Vlm, section, language: Language = SCENES, *, n: int = 1000
) -> dict[str, dict]:
  """Shares of sampled texts that are a question, and that have an answer on their image."""
  mix = Mix(seed=section.seed, scenes=n, language=language)
  features = encode_all(model, mix)
  limit = questions.longest(language) + 4
  texts = model.answer_features(features, ["ask"] * n, max_new_tokens=limit, temperature=1.0)
  programs = [questions.parse_question(t, language) for t in texts]
  answers = [
    questions.execute(p, s) for p, s in zip(programs, mix.all_scenes, strict=True) if p is not None
  ]
  answered = sum(a != questions.UNANSWERABLE for a in answers)
  return {
    "question": {"k": len(answers), "n": n, "rate": round(len(answers) / n, 4)},
    "answerable": {"k": answered, "n": n, "rate": round(answered / n, 4)},
  }


def main(config: ConfigDict, workdir: pathlib.Path) -> int:
  settings = build(PretrainConfig, config, name="config")
  output = pathlib.Path(settings.output or workdir / "models")
  specs, only = settings.models, settings.only
  if only and only not in {"siglip", *specs}:
    raise UserError(f"unknown model {only!r}; known: siglip, {', '.join(specs)}")
  for i, (name, spec) in enumerate(specs.items()):
    if spec.start and spec.start not in (before := list(specs)[:i]):
      known = ", ".join(before) or "none"
      raise UserError(f"config.models.{name}.start={spec.start!r}: models before it are {known}")
  tokenizer = Tokenizer.word_level(mix_lib.vocabulary(LANGUAGES[settings.world]))
  tower = _tower(settings, output, tokenizer)
  for name in [only] if only else specs:
    if name != "siglip":
      _make(name, settings, output, workdir / "training", tokenizer, tower)
  return 0


def _tower(settings: PretrainConfig, output: pathlib.Path, tokenizer: Tokenizer):
  """Returns the tower's params: those in `output`, of `made`, or of a training."""
  folder = output / "siglip"
  if settings.made and not folder.exists():
    made = pathlib.Path(settings.made, "siglip")
    weights.load_tower(made)  # It is one.
    part = folder.with_name("siglip.part")
    shutil.copytree(made, part, dirs_exist_ok=True)
    part.rename(folder)
  if not (folder / "config.json").exists():
    vision = settings.vision.model
    shape = model_config(next(iter(settings.models.values())), vision, tokenizer)
    params, accuracy = towers.train_tower(settings.vision, shape, LANGUAGES[settings.world])
    print("tower accuracy", accuracy, flush=True)
    weights.save_tower(folder, vision, {"img": params}, dtype="float16")
  return weights.load_tower(folder)[1]["img"]


def _make(
  name: str,
  settings: PretrainConfig,
  output: pathlib.Path,
  workdir: pathlib.Path,
  tokenizer: Tokenizer,
  tower,
) -> None:
  """Trains, measures and saves a model, and what it starts from, unless they are there.

  Raises:
    UserError: what it starts from has another vision tower.
  """
  if (output / name / "config.json").exists():
    return
  spec, language = settings.models[name], LANGUAGES[settings.world]
  start = None
  if spec.start:
    made = pathlib.Path(settings.made, spec.start)
    if not settings.made or not made.exists():
      _make(spec.start, settings, output, workdir, tokenizer, tower)
      made = output / spec.start
    start = load_vlm(made)
    found, own = (tree_lib.flatten(x) for x in (multimodal.tower(start.params), tower))
    if not all(np.array_equal(found[path], leaf) for path, leaf in own.items()):
      raise UserError(f"{made}: its vision tower is not that of {output / 'siglip'}")
  architecture = model_config(spec, settings.vision.model, tokenizer)
  training = workdir / name
  with checkpoint.Checkpointer(training, keep=1) as saved:
    model = train_model(
      name, spec, settings, architecture, tokenizer, tower, start=start, training=saved
    )
  accuracy = (
    measure_auditor(model, settings.heldout, language)
    if spec.tasks
    else measure(model, settings.heldout, gap_set(spec.gaps, language), language)
  )
  print(name, json.dumps({k: v["rate"] for k, v in accuracy.items()}), flush=True)
  extras = {"tower": "../siglip", "recipe": dataclasses.asdict(spec), "heldout": accuracy}
  model = dataclasses.replace(model, extras=extras)
  save_vlm(output / name, model, dtype="float16")
  shutil.rmtree(training)
