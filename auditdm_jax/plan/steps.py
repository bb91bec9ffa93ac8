# SPDX-License-Identifier: Apache-2.0
"""What a run does: which programs, with which shapes, and how often per GRPO step."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import math
import shlex

from auditdm_jax import vlm_batching as batching
from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.core.config import check
from auditdm_jax.models.multimodal import VlmConfig
from auditdm_jax.plan import programs
from auditdm_jax.plan.child import Built
from auditdm_jax.rectify import recipes
from auditdm_jax.rl import batch as batch_lib
from auditdm_jax.rl.draws import RolloutConfig
from auditdm_jax.rl.grpo import GrpoConfig
from auditdm_jax.rl.step import OptimConfig
from auditdm_jax.text import prompts as prompts_lib

STATE, COPY, TOWER = "train state", "the sampler's copy", "the auditor's tower"
_MICRO_BATCHES = 8  # Into which a batch is advised to be cut.


@dataclasses.dataclass(frozen=True)
class PlanConfig:
  """What a config does not say because it follows from files.

  Attributes:
    architectures: {folder: name in `models.variants`} of models that are not there yet.
    task_tokens: of the auditor's instructions with the turns around them, without the image.
    question_tokens: of a question to target and references, without the image.
  """

  architectures: Mapping[str, str] = dataclasses.field(default_factory=dict)
  task_tokens: int = 128
  question_tokens: int = 48

  def __post_init__(self):
    check(vars(self), "plan", "task_tokens", "question_tokens", least=1)


@dataclasses.dataclass(frozen=True)
class Run:
  """A config, as far as it decides what is compiled.

  Attributes:
    auditor: its architecture, in the dtype of the computation.
    answering: target and references by name, the target first, in their dtype.
    layout: meshes and rules.
    grpo: group size and updates.
    optim: of the auditor.
    rollout: prompts per step and lengths.
    answer_tokens: longest answer.
    int8: the references' decoders have int8 weights.
    paged: the answering models take turns in the devices' memory.
    recipe: of the target's repair; None = not planned.
    suffix: tokens of its labels.
    plan: see there.
  """

  auditor: VlmConfig
  answering: Mapping[str, VlmConfig]
  layout: programs.Layout
  grpo: GrpoConfig
  optim: OptimConfig
  rollout: RolloutConfig
  answer_tokens: int
  int8: bool = False
  paged: bool = False
  recipe: recipes.Recipe | None = None
  suffix: int = 16
  plan: PlanConfig = PlanConfig()

  @property
  def probes(self) -> int:
    """Completions of a step; each becomes a probe."""
    return sum(self.rollout.counts().values()) * self.grpo.group_size

  @property
  def second_turns(self) -> int:
    counts = self.rollout.counts()
    return sum(counts[s] for s in set(counts) & prompts_lib.TWO_TURNS) * self.grpo.group_size

  @property
  def images(self) -> int:
    """Unique images of a learner batch."""
    return self.probes // self.grpo.group_size + self.second_turns

  @property
  def probed_images(self) -> int:
    """Unique images that the probes are about."""
    counts = self.rollout.counts()
    made = sum(n for s, n in counts.items() if s != "question") * self.grpo.group_size
    return counts.get("question", 0) + made


@dataclasses.dataclass(frozen=True)
class Step:
  """One program of a run.

  Attributes:
    name: of the program.
    build: see `plan.programs`.
    calls: per GRPO step; 0 for what is not part of one.
    keeps: what of it stays on the devices through the whole step; "" for nothing.
  """

  name: str
  build: Callable[..., Built]
  calls: int
  keeps: str = ""


def steps(run: Run, devices: int) -> list[Step]:
  """The programs in the order of a step.

  Raises:
    UserError: a mesh does not use up the devices.
  """
  mesh_lib.sizes_of(run.layout.rollout or run.layout.mesh, devices)
  auditor = programs.Auditor(
    run.auditor, run.grpo, run.optim, run.layout, run.images, _parts(run, devices)
  )
  found = [Step("reshard", functools.partial(programs.reshard, auditor=auditor), 1)]
  found += _encodes(run, devices)
  found += _samples(run, auditor)
  found += [_answers(run, name, devices) for name in run.answering]
  if run.grpo.updates > 1:
    found.append(Step("score", functools.partial(programs.score, auditor=auditor), 1))
  train = functools.partial(programs.train, auditor=auditor)
  found.append(Step("train", train, run.grpo.updates, keeps=STATE))
  if run.recipe is not None:
    found.append(_repair(run))
  return found


def _parts(run: Run, devices: int) -> tuple[programs.Part, ...]:
  """Learner rows, as `Rollout.pack` lays them out."""
  shards = _row_shards(run, devices)
  padded = functools.partial(batch_lib.padded, devices=shards, micro_rows=run.optim.micro_rows)
  per_row = run.grpo.group_size if run.optim.shared_prefix else 1
  first, second = _widths(run)
  longest = max(run.rollout.max_new_tokens[prompts_lib.FIRST_TURN[s]] for s in run.rollout.counts())
  parts = [programs.Part(padded(run.probes // per_row), per_row, first, longest)]
  if run.second_turns:
    new = run.rollout.max_new_tokens["question"]
    parts.append(programs.Part(padded(run.second_turns), 1, second, new))
  return tuple(parts)


def _row_shards(run: Run, devices: int) -> int:
  """How many devices share the rows of a learner batch."""
  sizes = mesh_lib.sizes_of(run.layout.mesh, devices)
  return math.prod(n for name, n in sizes.items() if name != mesh_lib.TENSOR)


def _widths(run: Run) -> tuple[int, int]:
  """Prompt tokens of first and second turns."""
  task = run.auditor.num_image_tokens + run.plan.task_tokens
  two_turns = set(run.rollout.counts()) & prompts_lib.TWO_TURNS
  written = [run.rollout.max_new_tokens[prompts_lib.FIRST_TURN[s]] for s in two_turns]
  return task, task + max(written, default=0)


def _samples(run: Run, auditor: programs.Auditor) -> list[Step]:
  counts, new = run.rollout.counts(), run.rollout.max_new_tokens
  first, second = _widths(run)
  by_kind: dict[str, int] = {}
  for strategy, count in counts.items():
    kind = prompts_lib.FIRST_TURN[strategy]
    by_kind[kind] = by_kind.get(kind, 0) + count
  shapes = {
    f"sample {kind}": (count, run.grpo.group_size, first, new[kind])
    for kind, count in by_kind.items()
  }
  # The second turns of a strategy are one call; those of the largest are planned.
  again = [counts[s] * run.grpo.group_size for s in counts if s in prompts_lib.TWO_TURNS]
  calls = dict.fromkeys(shapes, 1)
  if again:
    shapes["sample again"] = (max(again), 1, second, new["question"])
    calls["sample again"] = len(again)
  return [
    Step(
      name,
      functools.partial(
        programs.sample, auditor=auditor, prompts=p, group=g, width=width, new=length
      ),
      calls[name],
      keeps=COPY,
    )
    for name, (p, g, width, length) in shapes.items()
  ]


def _encodes(run: Run, devices: int) -> list[Step]:
  """One per kind of tower, however many models have it."""
  wanted: dict[tuple, list[tuple[str, int]]] = {}
  for name, model, images, dtype in [
    ("auditor", run.auditor, run.images, "float32"),
    *((n, m, run.probed_images, m.text.dtype) for n, m in run.answering.items()),
  ]:
    wanted.setdefault((model.vision, dtype), []).append((name, images))
  by_tower = {(m.vision, m.text.dtype): m for m in run.answering.values()}
  by_tower[run.auditor.vision, "float32"] = run.auditor
  found = []
  for (vision, dtype), users in wanted.items():
    most = min(
      batching.images_per_call(vision, devices=devices, most=batching.MAX_BATCH * devices),
      max(images for _, images in users),
    )
    build = functools.partial(
      programs.encode, model=by_tower[vision, dtype], layout=run.layout, images=_power(most),
      dtype=dtype,
    )  # fmt: skip
    calls = sum(-(-images // most) for _, images in users)
    keeps = TOWER if users[0][0] == "auditor" else ""  # A target's is among what stays of it.
    found.append(Step(f"encode {'+'.join(name for name, _ in users)}", build, calls, keeps=keeps))
  return found


def _answers(run: Run, name: str, devices: int) -> Step:
  model = run.answering[name]
  width = batching.padded_length(model.num_image_tokens + run.plan.question_tokens)
  largest = batching.MAX_BATCH * devices
  most = batching.rows_per_call(
    model, width, new=run.answer_tokens, images=1, devices=devices, most=largest
  )
  rows = min(most, _power(run.probes))
  build = functools.partial(
    programs.answer, model=model, layout=run.layout, rows=rows, width=width, new=run.answer_tokens,
    dtype=model.text.dtype, quantized=run.int8 and name != next(iter(run.answering)),
  )  # fmt: skip
  keeps = "" if run.paged else name
  return Step(f"answer {name}", build, -(-run.probes // rows), keeps=keeps)


def _repair(run: Run) -> Step:
  target = next(iter(run.answering.values()))
  length = target.num_image_tokens + run.plan.question_tokens + run.suffix
  build = functools.partial(
    programs.repair, model=target, recipe=run.recipe, layout=run.layout, length=length,
    suffix=run.suffix,
  )  # fmt: skip
  return Step("repair", build, 0)


def _micro_rows(run: Run, devices: int) -> list[int]:
  """Smaller micro-batches of the learner: about so many as are advised, and the smallest ones."""
  shards = _row_shards(run, devices)
  most = max(part.rows for part in _parts(run, devices))
  some = max(most // _MICRO_BATCHES // shards, 1) * shards
  return [n for n in dict.fromkeys((some, shards)) if n < min(run.optim.micro_rows or most, most)]


def _power(n: int) -> int:
  return 1 << (n - 1).bit_length()


def changes(run: Run, step: Step, devices: int) -> Sequence[tuple[str, Run]]:
  """Settings that need less memory for a program that does not fit, the mildest first.

  Args:
    run: the config.
    step: what does not fit.
    devices: of the slice.

  Returns:
    Flags, as a shell takes them, and the run that they make.
  """
  found: list[tuple[str, Run]] = []
  if step.name in ("train", "score"):
    fields: dict[str, int] = {}

    def add(layout: programs.Layout = run.layout, flags: Sequence[str] = ()) -> None:
      optim = dataclasses.replace(run.optim, **fields)
      flags = [*(f"--config.optim.{name}={value}" for name, value in fields.items()), *flags]
      found.append((shlex.join(flags), dataclasses.replace(run, optim=optim, layout=layout)))

    if not run.optim.head_chunk:
      fields["head_chunk"] = 1024
      add()
    if not run.optim.remat:
      fields["remat"] = True
      add()
    for rows in _micro_rows(run, devices) if step.name == "train" else ():
      fields["micro_rows"] = rows
      add()
    if run.layout.mesh.get("fsdp", 1) == 1:
      # Axis by axis: a flag sets a key of a section, and not the section.
      mesh = {a: n if a == mesh_lib.TENSOR else 1 for a, n in run.layout.mesh.items()}
      mesh["fsdp"] = -1
      layout = dataclasses.replace(run.layout, mesh=mesh, rules=())
      flags = [f"--config.mesh.{axis}={n}" for axis, n in mesh.items()] + ["--config.rules=()"]
      smaller, fields = fields, {}
      add(layout, flags)
      if smaller:
        fields = smaller
        add(layout, flags)
  elif step.name == "repair" and run.recipe is not None:
    recipe, text = dataclasses.replace(run.recipe, remat=True), ""
    if not run.recipe.remat:
      text = "--config.rectify.recipe.remat=True"
      found.append((text, dataclasses.replace(run, recipe=recipe)))
    if not recipe.micro_rows and recipe.batch_size % _MICRO_BATCHES == 0:
      rows = recipe.batch_size // _MICRO_BATCHES
      text = f"{text} --config.rectify.recipe.micro_rows={rows}".strip()
      recipe = dataclasses.replace(recipe, micro_rows=rows)
      found.append((text, dataclasses.replace(run, recipe=recipe)))
  return found
