# SPDX-License-Identifier: Apache-2.0
"""What a run does: which programs, with which shapes, and how often per GRPO step."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import functools
import math
import shlex

from auditdm_jax import vlm_batching as batching
from auditdm_jax.audit.ask import BankConfig
from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.core.config import UserError, check
from auditdm_jax.models.multimodal import VlmConfig
from auditdm_jax.plan import programs
from auditdm_jax.plan.child import Built
from auditdm_jax.rectify import recipes
from auditdm_jax.rl import batch as batch_lib
from auditdm_jax.rl import shapes
from auditdm_jax.rl.draws import RolloutConfig
from auditdm_jax.rl.grpo import GrpoConfig
from auditdm_jax.rl.step import OptimConfig

STATE, COPY, TOWER = "train state", "the sampler's copy", "the auditor's tower"
READER, BEFORE = "the reader", "the auditor before training"
_MICRO_BATCHES = 8  # Into which a batch is advised to be cut.


@dataclasses.dataclass(frozen=True)
class PlanConfig:
  """What a config does not say because it follows from files.

  Attributes:
    architectures: {folder: name in `models.variants`} of models that are not there yet.
    task_tokens: length of the auditor's instructions and the turns around them, without the image.
    question_tokens: length of a question to target and references, without the image.
    examples: of the target's repair; the default is about what the paper's has.
  """

  architectures: Mapping[str, str] = dataclasses.field(default_factory=dict)
  task_tokens: int = 128
  question_tokens: int = 48
  examples: int = 1_100_000

  def __post_init__(self):
    check(vars(self), "plan", "task_tokens", "question_tokens", "examples", least=1)


@dataclasses.dataclass(frozen=True)
class PlannedRun:
  """A config, as far as it decides what is compiled.

  Attributes:
    auditor: its architecture, in the dtype of the computation.
    answering: target and references by name, in their dtype; endpoints are none of them.
    target: the name of the target; "" where it is an endpoint.
    layout: meshes and rules.
    grpo: group size and updates.
    optim: optimiser of the auditor.
    rollout: prompts per step and lengths.
    bank: how target and references are asked.
    answer_tokens: longest reply of each answering model, in tokens.
    int8: the references' decoders have int8 weights.
    paged: the answering models take turns in the devices' memory.
    recipe: recipe of the target's repair; None = not planned.
    suffix: tokens of its labels.
    asks_again: finds are put to the references in other words, for the reward.
    reader: reads proposals for the surrogate, in its dtype; None = a net picks, or nobody.
    plan: see there.
  """

  auditor: VlmConfig
  answering: Mapping[str, VlmConfig]
  target: str
  layout: programs.MeshLayout
  grpo: GrpoConfig
  optim: OptimConfig
  rollout: RolloutConfig
  bank: BankConfig
  answer_tokens: Mapping[str, int]
  int8: bool = False
  paged: bool = False
  recipe: recipes.Recipe | None = None
  suffix: int = 16
  asks_again: bool = False
  reader: VlmConfig | None = None
  plan: PlanConfig = PlanConfig()

  @property
  def rounds(self) -> int:
    """Returns the most rounds of prompts that a step draws."""
    return 1 + self.rollout.dynamic.rounds

  def calls(self, devices: int) -> shapes.Calls:
    """Returns the calls of a round, as the rollout makes them."""
    task = self.auditor.num_image_tokens + self.plan.task_tokens
    group, prompts = self.grpo.group_size, sum(self.rollout.prompts.values())
    shards = _row_shards(self.layout.mesh, devices)
    return shapes.calls_of(
      self.rollout,
      group,
      length=lambda text: task,
      per_row=self.optim.per_row(group, prompts=prompts, devices=shards),
      padded=functools.partial(batch_lib.padded, devices=shards, micro_rows=self.optim.micro_rows),
    )


@dataclasses.dataclass(frozen=True)
class PlannedProgram:
  """One program of a run.

  Attributes:
    name: name of the program.
    build: see `plan.programs`.
    calls: per GRPO step; 0 for what is not part of one.
    keeps: what of it stays on the devices through the whole step; "" for nothing.
    updates: calls of the whole repair; 0 for what is not one.
  """

  name: str
  build: Callable[..., Built]
  calls: int
  keeps: str = ""
  updates: int = 0


def steps(run: PlannedRun, devices: int) -> list[PlannedProgram]:
  """Returns the programs in the order of a step.

  Calls of the sampler and of the learner are those of every step. What is encoded and answered is
  at most so much: see `rl.shapes`. Towers of one kind share a program, but not the features: their
  weights may differ, which no config says. In a cascade some probes are put to all models in a call
  of their own, and the others are answered by fewer models than are planned.

  Raises:
    UserError: a mesh does not use up the devices.
  """
  mesh_lib.sizes_of(run.layout.rollout or run.layout.mesh, devices)
  calls = run.calls(devices)
  auditor = programs.Auditor(run.auditor, run.grpo, run.optim, run.layout, calls)
  found = [PlannedProgram("reshard", functools.partial(programs.reshard, auditor=auditor), 1)]
  found += _encodes(run, calls, devices)
  found += [program for call in calls.sample for program in _sample(run, auditor, call)]
  if run.reader is not None:
    found.append(_read(run, run.reader, devices))
  for name in run.answering:
    found += _answers(run, calls, name, devices)
  if run.grpo.updates > 1:
    found.append(PlannedProgram("score", functools.partial(programs.score, auditor=auditor), 1))
  train = functools.partial(programs.train, auditor=auditor)
  found.append(PlannedProgram("train", train, run.grpo.updates, keeps=STATE))
  if run.recipe is not None and run.target:
    text = run.plan.question_tokens + run.suffix
    model = run.answering[run.target]
    found.append(_repair(run, "repair", run.recipe, model=model, text=text))
  return found


def _row_shards(mesh: Mapping[str, int], devices: int) -> int:
  """Returns how many devices share the rows of a batch on a mesh with these axes."""
  sizes = mesh_lib.sizes_of(mesh, devices)
  return math.prod(n for name, n in sizes.items() if name != mesh_lib.TENSOR)


def _sample(
  run: PlannedRun, auditor: programs.Auditor, call: shapes.SampleCall
) -> list[PlannedProgram]:
  """Returns what makes a call; of first turns, the auditor before training may write a share."""
  name = f"sample {call.kind} again" if call.turn else f"sample {call.kind}"
  surrogate = run.rollout.surrogate
  others = surrogate.untrained if surrogate.proposals and not call.turn else 0
  shares = [(name, call.group - others, COPY), (f"{name} untrained", others, BEFORE)]
  return [
    PlannedProgram(
      name,
      functools.partial(
        programs.sample, auditor=auditor, call=dataclasses.replace(call, group=group)
      ),
      run.rounds,
      keeps=keeps,
    )
    for name, group, keeps in shares
    if group
  ]


def _read(run: PlannedRun, model: VlmConfig, devices: int) -> PlannedProgram:
  """Returns what reads all proposals of a step, of which a group is asked."""
  width = batching.padded_length(model.num_image_tokens + run.plan.question_tokens)
  most = batching.MAX_BATCH * devices
  rows = batching.rows_per_call(model, width, new=0, images=1, devices=devices, most=most)
  proposed = sum(run.rollout.sampled().values()) * run.rollout.samples(run.grpo.group_size)
  build = functools.partial(
    programs.read, model=model, layout=run.layout, rows=rows, width=width, dtype=model.text.dtype
  )
  calls = math.ceil(proposed / rows) * run.rounds
  return PlannedProgram(f"read x{rows}", build, calls, keeps=READER)


def _encodes(run: PlannedRun, calls: shapes.Calls, devices: int) -> list[PlannedProgram]:
  """Returns one program per kind of tower and number of images, however many models have it."""
  seen = {
    name: (m, m.text.dtype, [a.images for a in calls.asked]) for name, m in run.answering.items()
  }
  users = {"auditor": (run.auditor, "float32", list(calls.encoded)), **seen}
  if run.reader is not None:  # The sources: what is to be made is read beside them.
    users["reader"] = run.reader, run.reader.text.dtype, [calls.encoded[0]]
  names: dict[tuple, list[str]] = {}
  count: Counter[tuple] = Counter()
  for name, (model, dtype, images) in users.items():
    largest = batching.MAX_BATCH * devices
    most = batching.images_per_call(model.tower, devices=devices, most=largest)
    small = programs.is_small(model)
    sizes = Counter(
      size for n in images for size in batching.call_sizes(n, most, small=small, shards=devices)
    )
    for size, times in sizes.items():
      names.setdefault((model.vision, dtype, size), []).append(name)
      count[model.vision, dtype, size] += times * run.rounds
  found = []
  for (vision, dtype, size), who in names.items():
    build = functools.partial(
      programs.encode, model=users[who[0]][0], layout=run.layout, images=size, dtype=dtype
    )
    keeps = TOWER if who[0] == "auditor" else ""  # A target's is among what stays of it.
    name = f"encode {'+'.join(who)} x{size}"
    found.append(PlannedProgram(name, build, count[vision, dtype, size], keeps=keeps))
  return found


def _answers(run: PlannedRun, calls: shapes.Calls, name: str, devices: int) -> list[PlannedProgram]:
  """Returns one program per shape of the calls that a model answers probes in.

  The probes about a group of images are spread evenly over these.
  """
  model, is_target, new = run.answering[name], name == run.target, run.answer_tokens[name]
  small = programs.is_small(model)
  room = batching.Room(
    devices=devices,
    shards=_answer_shards(run, devices),
    most=batching.MAX_BATCH * devices,
    small=small,
  )
  asked = [(a.probes, a.images) for a in calls.asked]
  if run.asks_again and not is_target:
    asked.append((sum(n for n, _ in asked), sum(images for _, images in asked)))
  head = model.num_image_tokens if model.kind == "gemma3" and not small else 0
  longest = model.num_image_tokens + run.plan.question_tokens
  sizes: Counter[tuple] = Counter()
  for probes, images in asked:
    places = sorted(i % images for i in range(probes))
    shapes = [batching.PromptShape(longest, 1, head, place) for place in places]
    for part in _pieces(probes, run.bank.batch_size):
      piece, shapes = shapes[:part], shapes[part:]
      for call in batching.calls(model, piece, new=new, room=room):
        sizes[call.rows.shape] += 1
  found = []
  for rows, times in sizes.items():
    widths = batching.padded_length(longest), 0
    if rows[1] > 1:
      widths = batching.padded_head(head), batching.padded_length(longest - head)
    build = functools.partial(
      programs.answer,
      model=model,
      layout=run.layout,
      rows=rows,
      widths=widths,
      new=new,
      dtype=model.text.dtype,
      quantized=run.int8 and not is_target,
    )
    keeps = "" if run.paged else name
    size = f"{rows[0]}" if rows[1] == 1 else f"{rows[0]}x{rows[1]}"
    found.append(PlannedProgram(f"answer {name} x{size}", build, times * run.rounds, keeps=keeps))
  return found


def _answer_shards(run: PlannedRun, devices: int) -> int:
  """Returns how many devices share the rows of what is answered."""
  sizes = mesh_lib.sizes_of(run.layout.rollout or run.layout.mesh, devices)
  return math.prod(n for name, n in sizes.items() if name != mesh_lib.TENSOR)


def _pieces(n: int, most: int) -> Iterator[int]:
  """Yields the sizes of the pieces that n things are cut into."""
  for start in range(0, n, most):
    yield min(most, n - start)


def _repair(
  run: PlannedRun, name: str, recipe: recipes.Recipe, *, model: VlmConfig, text: int
) -> PlannedProgram:
  """Returns one update of a repair, in rows of an image and `text` tokens."""
  build = functools.partial(
    programs.repair,
    model=model,
    recipe=recipe,
    layout=run.layout,
    length=model.num_image_tokens + text,
    suffix=min(run.suffix, text),
  )
  return PlannedProgram(name, build, 0, updates=recipe.num_steps(run.plan.examples))


def repairs(run: PlannedRun, names: Iterable[str]) -> list[PlannedProgram]:
  """Returns the repair of the target by each recipe, at the recipe's resolution and row length.

  What the config says of memory (`remat`, `micro_rows`) holds for all of them.

  Raises:
    UserError: there is no such recipe, or no target that can be repaired.
  """
  if run.recipe is None or not run.target:
    raise UserError("there is no repair: the target is an endpoint")
  found = []
  for name in names:
    recipe = recipes.get(name, where="--recipes")
    rows = run.recipe.micro_rows if run.recipe.micro_rows < recipe.batch_size else 0
    recipe = dataclasses.replace(recipe, remat=run.recipe.remat, micro_rows=rows)
    model = run.answering[run.target]
    if recipe.format.res:
      vision = dataclasses.replace(model.tower, image_size=recipe.format.res)
      model = dataclasses.replace(model, vision=vision)
    text = recipe.format.text_len or run.plan.question_tokens + run.suffix
    found.append(_repair(run, f"repair {name}", recipe, model=model, text=text))
  return found


def _micro_rows(run: PlannedRun, devices: int) -> list[int]:
  """Smaller micro-batches of the learner: about so many as are advised, and the smallest ones."""
  shards = _row_shards(run.layout.mesh, devices)
  most = max(part.rows for part in run.calls(devices).parts)
  some = max(most // _MICRO_BATCHES // shards, 1) * shards
  return [n for n in dict.fromkeys((some, shards)) if n < min(run.optim.micro_rows or most, most)]


def changes(
  run: PlannedRun, step: PlannedProgram, devices: int
) -> Sequence[tuple[str, PlannedRun]]:
  """Settings that need less memory for a program that does not fit, the mildest first.

  Args:
    run: the config.
    step: what does not fit.
    devices: of the slice.

  Returns:
    Flags, as a shell takes them, and the run that they make.
  """
  found: list[tuple[str, PlannedRun]] = []
  if step.name in ("train", "score"):
    fields: dict[str, int] = {}

    def add(layout: programs.MeshLayout = run.layout, flags: Sequence[str] = ()) -> None:
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
  elif step.updates and run.recipe is not None:
    recipe, text = dataclasses.replace(run.recipe, remat=True), ""
    if not run.recipe.remat:
      text = "--config.rectify.recipe.remat=True"
      found.append((text, dataclasses.replace(run, recipe=recipe)))
    shards, batch = _row_shards(run.layout.repair or run.layout.mesh, devices), recipe.batch_size
    some = max(batch // _MICRO_BATCHES // shards, 1) * shards
    for rows in dict.fromkeys((some, shards)):
      if batch % rows == 0 and rows < (recipe.micro_rows or batch):
        flags = f"{text} --config.rectify.recipe.micro_rows={rows}".strip()
        found.append(
          (flags, dataclasses.replace(run, recipe=dataclasses.replace(recipe, micro_rows=rows)))
        )
  return found
