# SPDX-License-Identifier: Apache-2.0
"""Plans of tiny runs. For a CPU everything is compiled; for a TPU where its compiler is there."""

import dataclasses
import shlex
import subprocess
import sys

from absl import flags
import jax
import numpy as np
import pytest

from auditdm_jax import vlm_batching as batching
from auditdm_jax import vlm_model
from auditdm_jax.audit.ask import BankConfig
from auditdm_jax.core import overrides, tree
from auditdm_jax.core.config import UserError
from auditdm_jax.models import variants
from auditdm_jax.plan import chips, compiling, programs, steps, table, traffic
from auditdm_jax.rectify import recipes
from auditdm_jax.rectify.recipes import Recipe
from auditdm_jax.rl.draws import RolloutConfig
from auditdm_jax.rl.grpo import GrpoConfig
from auditdm_jax.rl.step import OptimConfig
from auditdm_jax.rl.surrogate import SurrogateConfig
from auditdm_jax.stages import plan as stage
from auditdm_jax.stages.sections import AuditConfig
from tests.rl import fakes, tiny


def run(**changes):
  model = tiny.config()
  base = steps.PlannedRun(
    auditor=model,
    answering={"target": model, "reference": model},
    target="target",
    layout=programs.MeshLayout({"fsdp": -1}, {"fsdp": -1, "tensor": 2}),
    grpo=GrpoConfig(group_size=4),
    optim=OptimConfig(steps=10, head_chunk=8, remat=True),
    rollout=RolloutConfig(
      prompts=fakes.MIXED, max_new_tokens={"question": 5, "caption": 7, "instruction": 6}
    ),
    bank=BankConfig(max_new_tokens=3),
    answer_tokens={"target": 3, "reference": 3},
    recipe=Recipe(steps=5, batch_size=8, lr=1e-3),
    suffix=3,
    plan=steps.PlanConfig(task_tokens=6, question_tokens=8),
  )
  return dataclasses.replace(base, **changes)


def named(planned, name):
  return next(s for s in planned if s.name.startswith(name))


@pytest.mark.parametrize("shared", [True, False])
def test_the_planned_batch_is_the_one_that_a_rollout_packs(shared):
  rollout = fakes.rollout(per_row=4 if shared else 1)
  batch = rollout.step(tiny.params(), 0).batch
  widths = [part.prompt.shape[1] for part in batch.parts]
  image = tiny.config().num_image_tokens
  task = steps.PlanConfig(task_tokens=widths[0] - image)
  optim = OptimConfig(shared_prefix=shared)
  planned = run(optim=optim, layout=programs.MeshLayout({"data": -1}), plan=task)
  train = named(steps.steps(planned, 1), "train").build(jax.devices()[:1])
  want = train.args[1]
  assert want.features.shape == batch.features.shape
  for a, b in zip(want.parts, batch.parts, strict=True):
    # The second turns' tasks are longer by words that only a tokenizer can count.
    same = {f.name for f in dataclasses.fields(a)} - {"prompt", "prompt_valid", "logp_old"}
    for name in same:
      assert vars(a)[name].shape == np.shape(vars(b)[name]), name


def test_calls_of_a_step():
  planned = steps.steps(run(), 8)
  assert [(s.name, s.calls) for s in planned] == [
    ("reshard", 1),
    # Sources and images of second turns of the auditor; of the others sources of questions, and
    # made images, which are two calls of so small a model.
    ("encode auditor+target+reference x8", 8),
    ("sample instruction", 1),
    ("sample caption", 1),
    ("sample question", 1),
    ("sample question again", 1),
    ("answer target x8", 3),  # about the sources, and in two about made images
    ("answer reference x8", 3),
    ("train", 1),
    ("repair", 0),
  ]
  paged = steps.steps(run(paged=True), 8)
  assert {s.keeps for s in paged} == {"", steps.STATE, steps.COPY, steps.TOWER}


@pytest.mark.parametrize(
  "name", ["v5e:4y4", "v5:4x4", "gpu:h300x8", "cpu:0", "v5e", "v5e:0x4", "v5e:x"]
)
def test_a_topology_that_is_none(name):
  with pytest.raises(UserError, match="no such slice"):
    chips.parse(name)


def test_a_reader_reads_in_the_calls_that_are_planned_and_stays(monkeypatch):
  vlm, called = tiny.auditor(), []
  rollout = dataclasses.replace(run().rollout, surrogate=SurrogateConfig(proposals=60, prompts=2))
  n = 60 * 2 * sum(rollout.counts().values())
  prompts = ["what color is it ?"] * n
  shapes = lambda args: [np.shape(x) for x in jax.tree.leaves(args)]  # noqa: E731

  def spied(config, *args):
    called.append(shapes(args))
    return np.zeros((len(args[-1]), config.text.width), np.float32)

  monkeypatch.setattr(vlm_model.programs, "states", spied)
  monkeypatch.setattr(batching, "MAX_BATCH_CPU", batching.MAX_BATCH)  # Accelerators are planned.
  vision = vlm.config.tower
  features = np.zeros((1, vision.num_patches, vision.width), np.float32)
  vlm.states(features, prompts, which=[0] * n)
  tokens = len(vlm.tokenizer.encode(prompts[0])) + 2  # With what the template adds.
  alone = programs.MeshLayout({"data": -1})
  planned = run(
    rollout=rollout, reader=vlm.config, plan=steps.PlanConfig(question_tokens=tokens), layout=alone
  )
  read = named(steps.steps(planned, 1), "read")
  assert (read.calls, read.keeps) == (len(called), steps.READER)
  assert {repr(shapes(read.build(jax.devices()[:1]).args[1:]))} == {repr(x) for x in called}
  assert not any(s.name.startswith("read") for s in steps.steps(run(layout=alone), 1))


def test_of_two_authors_each_has_a_program_and_stays():
  surrogate = SurrogateConfig(proposals=60, untrained=24)
  planned = steps.steps(run(rollout=dataclasses.replace(run().rollout, surrogate=surrogate)), 8)
  of = {s.name: s for s in planned if s.name.startswith("sample")}
  groups = {name: s.build.keywords["call"].group for name, s in of.items()}
  for kind in ("instruction", "caption", "question"):
    assert groups[f"sample {kind}"] == 36 and groups[f"sample {kind} untrained"] == 24
    keeps = of[f"sample {kind}"].keeps, of[f"sample {kind} untrained"].keeps
    assert keeps == (steps.COPY, steps.BEFORE)
  assert of["sample question again"].keeps == steps.COPY, "a second turn is the auditor's own"
  assert len(of) == 7


@pytest.mark.parametrize("name", ["v5e:3x3", "v5e:1x2", "v5e:4x4x4", "v5p:4x4", "v5p:1x1x1"])
def test_a_shape_that_no_slice_has(name):
  with pytest.raises(UserError, match=f"no slice of {name[:3]} has that shape; {name[:3]}:"):
    chips.parse(name)


def needs_compiler(where):
  try:
    compiling.check(where)
  except UserError as e:
    pytest.skip(str(e))


@pytest.mark.parametrize("name", ["v5e:1x1", "v6e:2x4", "v5p:2x2x1", "gpu:h100x8", "gpu:h200x1"])
def test_the_compiler_knows_the_slices(name):
  where = chips.parse(name)
  needs_compiler(where)
  devices = where.devices()
  assert len(devices) == where.size
  assert devices[0].device_kind.startswith(where.chip.kind.removesuffix("e"))


@pytest.mark.parametrize(
  ("name", "package"), [("v5e:4x4", r"jax\[tpu\]"), ("gpu:h200x8", "jax-cuda12-plugin")]
)
def test_a_compiler_that_is_not_there(name, package, monkeypatch):
  monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=f'{package}=={jax.__version__}"'):
    compiling.check(chips.parse(name))
  compiling.check(chips.parse("cpu:8"))


def test_gpus_of_more_than_one_machine():
  with pytest.raises(UserError, match="gpu:h200x16: at most 8, the GPUs of one machine"):
    chips.parse("gpu:h200x16")


def test_names_of_slices():
  assert [chips.parse(n).size for n in ("v5e:4x4", "v5p:2x2x2", "gpu:h200x8", "cpu:3")] == [
    16,
    8,
    8,
    3,
  ]


def compiled(total, *, stays=0, refused=False):
  return compiling.Compiled(1e15, stays, total * chips.GIB, refused, (), None, 1.0)


def test_a_program_must_fit_beside_what_stays():
  where = chips.parse("v5e:4x4")
  planned = {s.name: s for s in steps.steps(run(), 16)}
  gib = chips.GIB
  done = [
    (planned["sample question"], compiled(4, stays=2 * gib)),
    (planned["answer target x8"], compiled(3, stays=3 * gib)),
    (planned["train"], compiled(9, stays=3 * gib)),
    (planned["repair"], compiled(14, stays=6 * gib)),
  ]
  plan = table.make(where, done, run_steps=10)
  assert [row.beside / gib for row in plan.rows] == [6, 5, 5, 0]
  assert plan.too_big() == []
  done[2] = (planned["train"], compiled(10, stays=3 * gib))
  plan = table.make(where, done, run_steps=10)
  assert [row.step.name for row in plan.too_big()] == ["train"]
  said = stage.advice(run(), plan, plan.too_big()[0])
  assert "15.00 GiB a chip, 0.82 more than 90% of 15.75" in said
  assert "It fits with --config.models.paged=True" in said
  assert table.LABEL in table.text(plan)


def test_what_would_make_a_repair_smaller():
  recipe = Recipe(steps=5, batch_size=16, lr=1e-3)
  found = steps.changes(run(recipe=recipe), named(steps.steps(run(), 8), "repair"), 8)
  assert [text for text, _ in found] == [
    "--config.rectify.recipe.remat=True",
    "--config.rectify.recipe.remat=True --config.rectify.recipe.micro_rows=8",
  ]
  last = found[-1][1].recipe
  assert last.remat and last.micro_rows == 8 and last.batch_size == 16
  assert not steps.changes(run(recipe=last), named(steps.steps(run(), 8), "repair"), 8)


@pytest.mark.parametrize("name", ["vqav2", "gqa-448", "chartqa-896", "refcoco-896", "forkme"])
def test_the_repair_by_a_recipe_has_its_images_and_rows(name):
  known = recipes.get(name)
  target = variants.VARIANTS["paligemma2_3b_448"]
  big = run(answering={"target": target}, layout=programs.MeshLayout({"fsdp": -1}), suffix=16)
  (planned,) = steps.repairs(big, [name])
  built = planned.build(jax.devices()[:1])
  state, batch = built.args
  res, rows = known.format.res, known.batch_size
  patches = (res // 14) ** 2
  tower = () if name == "gqa-448" else (rows, res, res, 3)
  assert batch.images.shape == (tower or (rows, patches, 1152)) and batch.image is None
  assert batch.tokens.shape == (rows, patches + known.format.text_len)
  assert state.params["img"]["pos_embedding"].shape == (1, patches, 1152)
  moments = {path.partition("mu/")[2] for path in tree.flatten(state.opt_state)}
  assert ("img/embedding/kernel" in moments) == bool(tower)
  assert planned.updates == known.num_steps(1_100_000)


def test_a_repair_that_cannot_be_planned():
  with pytest.raises(UserError, match="--recipes: no recipe 'chartq' .did you mean 'chartqa'"):
    steps.repairs(run(), ["chartq"])
  with pytest.raises(UserError, match="the target is an endpoint"):
    steps.repairs(run(target=""), ["chartqa"])


def test_a_plan_says_what_a_whole_repair_costs():
  where = chips.parse("v5e:4x4")
  (planned,) = steps.repairs(run(), ["vqav2-448"])
  moved = traffic.Traffic(memory=1e9, collectives={})
  done = compiling.Compiled(16e15, 0, 4 * chips.GIB, False, (), moved, 1.0)
  plan = table.make(where, [(planned, done)], run_steps=10)
  updates = round(10 * 1_100_000 / 256)
  best = 1e15 / where.chip.flops * updates * 16 / 3600
  worst = best + 1e9 / where.chip.memory_rate * updates * 16 / 3600
  assert (
    f"repair vqav2-448: {updates:,} updates, {best:.0f} to {worst:.0f} chip-hours"
    in table.text(plan)
  )
  assert "a step:" not in table.text(plan)


def configured(flags_given):
  """What the stage reads, from flags as a shell splits them."""
  values = flags.FlagValues()
  config = overrides.define("", flag_values=values)
  overrides.parse_flags(values, shlex.split(flags_given), AuditConfig)
  return stage.read(config.value)


@pytest.mark.parametrize(
  ("config", "devices", "name", "count"),
  [
    ("configs/scenes.py", 8, "train", 4),
    ("configs/scenes.py --config.optim.micro_rows=0 --config.optim.remat=True", 2, "train", 4),
    ("configs/paligemma2.py:on=v5e-16", 16, "train", 1),
    ("configs/paligemma2.py:on=v5e-16 --config.optim.shared_prefix=False", 16, "train", 2),
    ("configs/scenes.py", 8, "repair", 1),
  ],
)
def test_advice_can_be_typed(config, devices, name, count):
  given = f"--config={config}"
  asked = configured(given)
  found = steps.changes(asked, named(steps.steps(asked, devices), name), devices)
  assert len(found) == count and len({text for text, _ in found}) == count
  for text, changed in found:
    assert configured(f"{given} {text}") == changed, text
    steps.steps(changed, devices)
    rows = changed.optim.micro_rows
    shards = steps._row_shards(changed.layout.mesh, devices)
    assert rows % shards == 0 and (not asked.optim.micro_rows or rows <= asked.optim.micro_rows)


def test_the_repair_is_planned_on_its_own_mesh():
  layout = programs.MeshLayout({"fsdp": -1}, repair={"data": -1, "tensor": 1})
  build = named(steps.steps(run(layout=layout), 1), "repair").build
  assert build(jax.devices()[:1]).mesh.axis_names == ("data", "tensor")
  layout = programs.MeshLayout({"fsdp": 4, "tensor": 2}, repair={"fsdp": 2, "tensor": 4})
  split = run(layout=layout)
  found = steps.changes(split, named(steps.steps(split, 8), "repair"), 8)
  assert [changed.recipe.micro_rows for _, changed in found] == [0, 2]


MISTAKES = [
  (["--config.mesh.data=3"], "mesh {'data': 3} does not use up the 8 devices"),
  (["--config.mesh.data=0"], "sizes are at least 1"),
  (["--config.optim.micro_rows=3"], "optim.micro_rows=3: must be a multiple of the 8 devices"),
  (
    ["--only=repair", "--config.rectify.recipe.micro_rows=4"],
    "rectify.recipe.micro_rows=4: must be a multiple of the 8 devices",
  ),
  (["--config.optim.b1=3.0"], "optim.b1=3.0: must be"),  # A key that the file does not have.
  (["--config.optim.lrr=1"], "config.optim has no key 'lrr' (did you mean 'lr'?)"),
  (["--config.models.references=('a/x', 'b/x')"], "a/x and b/x have one name, x"),
]


@pytest.mark.parametrize(("given", "message"), MISTAKES)
def test_a_mistake_is_told_as_one(given, message):
  command = ["plan", "--config=configs/scenes.py", "--topology=cpu:8", "--only=train", *given]
  done = subprocess.run(
    [sys.executable, "-m", "auditdm_jax", *command],
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  said = [line for line in done.stderr.splitlines() if not line.startswith("compiling ")]
  assert done.returncode == 2 and len(said) == 1 and message in said[0], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["cpu:8", "v5e:2x4", "gpu:h100x8"])
def test_every_program_of_a_tiny_run_compiles(topology):
  where = chips.parse(topology)
  needs_compiler(where)
  for step in steps.steps(run(), where.size):
    done = compiling.compile_program(step.build, where)
    assert done.total > done.stays > 0 and not done.refused
    assert done.traffic is not None and (done.flops > 0 or step.name == "reshard")


def test_the_train_step_compiles_for_eight_devices():
  where = chips.parse("cpu:8")
  done = compiling.compile_program(named(steps.steps(run(), 8), "train").build, where)
  assert done.traffic.collectives["all-gather"].runs > 2  # each layer, forward and backward
  assert done.flops > 1e5


def test_each_model_answers_in_the_length_of_its_style():
  asked = configured("--config=configs/paligemma2.py")
  assert asked.answer_tokens["paligemma2-3b-mix-448"] == asked.bank.max_new_tokens == 16
  assert asked.answer_tokens["gemma-3-12b-it"] == 32
