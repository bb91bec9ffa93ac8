# SPDX-License-Identifier: Apache-2.0
"""plan: says whether a config fits on a slice of chips and what it costs, without any chip.

  python -m auditdm_jax plan --config=configs/paligemma2.py:on=v5e-16 --topology=v5e:4x4

Compiles every program of the config for the slice and prints memory, work, messages and estimated
times. Exits with 1 if something does not fit, and says which setting would help. For TPUs it needs
the compiler: pip install "jax[tpu]==0.10.2". For gpu:h200x8, gpu:h100x8 and cpu:8 XLA for CPUs
splits the programs, and their memory is an upper bound.

  python -m auditdm_jax plan --config=configs/paligemma2.py --topology=v6e:4x4 --recipes=vqav2-448

plans the repair of the target by recipes alone, each at its resolution, and says what it costs for
config.plan.examples; --recipes=all is for those of all transfers.

Reads:  the config and the config.json of its models, no weights.
Writes: nothing; it prints.
Costs:  compiling each program: seconds on a CPU, with --full minutes.
"""

from collections.abc import Callable
import functools
import json
import pathlib
import sys

from absl import flags
from ml_collections import ConfigDict

from auditdm_jax.core import overrides, runtime
from auditdm_jax.core.config import UserError, build, did_you_mean
from auditdm_jax.models import variants, weights
from auditdm_jax.models.multimodal import VlmConfig
from auditdm_jax.plan import chips, compiling, programs, steps, table
from auditdm_jax.rectify import recipes
from auditdm_jax.stages.sections import AuditConfig
from auditdm_jax.text import styles

FLAGS = flags.FlagValues()
_CONFIG = overrides.define("The config.", flag_values=FLAGS)
_TOPOLOGY = flags.DEFINE_string(
  "topology", None, "The chips, such as v5e:4x4 or gpu:h200x8.", flag_values=FLAGS
)
_FULL = flags.DEFINE_bool(
  "full", False, "Generate code as well: minutes instead of seconds.", flag_values=FLAGS
)
_JSON = flags.DEFINE_bool("json", False, "Print JSON instead of a table.", flag_values=FLAGS)
_RECIPES = flags.DEFINE_list(
  "recipes", [], "Plan the target's repair by these recipes, and nothing else.", flag_values=FLAGS
)
_ONLY = flags.DEFINE_list("only", [], "Programs whose names start so.", flag_values=FLAGS)


def main() -> int:
  if _CONFIG.value is None or _TOPOLOGY.value is None:
    raise UserError("plan needs --config and --topology; see plan --help")
  runtime.stay_off_accelerators()
  where = chips.parse(_TOPOLOGY.value)
  compiling.check(where)
  if "models" not in _CONFIG.value:
    raise UserError("--config: it has no section `models`; plan is for configs of an audit")
  run = read(_CONFIG.value)
  settings = build(AuditConfig, _CONFIG.value, name="config")
  if elsewhere := _endpoints(settings):
    print(
      f"{', '.join(elsewhere)}: behind endpoints; their memory and time are unknown, not zero",
      file=sys.stderr,
    )
  planned = _planned(run, where.size)
  wanted = [s for s in planned if s.name.startswith(tuple(_ONLY.value or [""]))]
  if not wanted:
    known = [s.name for s in planned]
    hint = did_you_mean(_ONLY.value[0], known)
    raise UserError(f"--only={','.join(_ONLY.value)}: no such program{hint}: {', '.join(known)}")
  done = []
  for step in wanted:
    print(f"compiling {step.name}", file=sys.stderr, flush=True)
    done.append((step, compiling.compile_program(step.build, where, full=_FULL.value)))
  plan = table.make(where, done, run_steps=settings.all_steps)
  print(json.dumps(table.as_dict(plan)) if _JSON.value else table.text(plan))
  for row in plan.too_big():
    print(advice(run, plan, row), file=sys.stderr)
  return 1 if plan.too_big() else 0


def _planned(run: steps.PlannedRun, devices: int) -> list[steps.PlannedProgram]:
  names = _RECIPES.value
  if not names:
    return steps.steps(run, devices)
  return steps.repairs(run, recipes.TRANSFERS if names == ["all"] else names)


def read(config: ConfigDict) -> steps.PlannedRun:
  """The parts of a config that decide what is compiled."""
  settings = build(AuditConfig, config, name="config")
  models = settings.models
  of = functools.partial(architecture, settings=settings.plan, dtype=models.dtype)
  return steps.PlannedRun(
    auditor=of(models.auditor),
    answering={pathlib.Path(p).name: of(p) for p in _folders(settings)},
    target="" if models.target in settings.endpoints else pathlib.Path(models.target).name,
    layout=programs.MeshLayout(
      settings.mesh,
      settings.rollout_mesh,
      tuple((regex, tuple(spec)) for regex, spec in settings.rules),
      settings.repair_mesh,
    ),
    grpo=settings.grpo,
    optim=settings.optim,
    rollout=settings.rollout,
    bank=settings.bank,
    answer_tokens=_answer_tokens(settings),
    int8=models.int8,
    paged=models.paged,
    recipe=settings.rectify.recipe,
    suffix=settings.rectify.suffix,
    asks_again=settings.reward.answerability > 0,
    reader=_reader(settings, of),
    plan=settings.plan,
  )


def _reader(settings: AuditConfig, of: Callable[[str], VlmConfig]) -> VlmConfig | None:
  """The architecture of who reads proposals while an auditor is trained."""
  picks = settings.rollout.surrogate
  if not picks.reader or not picks.proposals:
    return None
  return of(settings.models.auditor if picks.reader == "auditor" else picks.reader)


def _folders(settings: AuditConfig) -> list[str]:
  """Returns target and references that are folders, the target first."""
  models = settings.models
  return [s for s in (models.target, *models.references) if s not in settings.endpoints]


def _endpoints(settings: AuditConfig) -> list[str]:
  """Returns target and references that are endpoints."""
  models = settings.models
  return [s for s in (models.target, *models.references) if s in settings.endpoints]


def _answer_tokens(settings: AuditConfig) -> dict[str, int]:
  """Returns the longest reply of each answering model; its style may say another than the bank."""
  longest, known = {}, settings.plan.architectures
  for folder in _folders(settings):
    style, name = styles.PLAIN, pathlib.Path(folder).name
    if folder in known:
      paligemma = known[folder].startswith("paligemma")
      style = styles.style_for(name, paligemma=paligemma, has_turns=True)
    own = settings.bank.style_of(name, style).max_new_tokens
    longest[name] = own or settings.bank.max_new_tokens
  return longest


def architecture(folder: str, *, settings: steps.PlanConfig, dtype: str) -> VlmConfig:
  """That of the files, or what config.plan.architectures says while there are none."""
  if folder in settings.architectures:
    name = settings.architectures[folder]
    if name not in variants.VARIANTS:
      hint = did_you_mean(name, variants.VARIANTS)
      raise UserError(f"config.plan.architectures: no model {name!r}{hint}")
    return variants.VARIANTS[name].with_dtype(dtype)
  return weights.open_model(folder, dtype=dtype).config.with_dtype(dtype)


def advice(run: steps.PlannedRun, plan: table.Plan, row: table.ProgramRow) -> str:
  """Which program does not fit, by how much, and a setting with which it was seen to fit."""
  over = (row.footprint - plan.limit) / chips.GIB
  said = (
    f"{row.step.name} does not fit on {plan.where.name}: {row.footprint / chips.GIB:.2f} GiB a"
    f" chip, {over:.2f} more than {table.USABLE:.0%} of {plan.where.chip.memory / chips.GIB:.2f}"
  )
  if row.compiled.total <= plan.limit:
    if not run.paged and plan.where.size and any(name in run.answering for name in plan.kept):
      beside = sum(size for name, size in plan.kept.items() if name in run.answering)
      if row.footprint - beside <= plan.limit:
        return f"{said}, beside what else is there. It fits with --config.models.paged=True"
    return f"{said}, beside what else is there. Leave out a reference, or take more chips"
  for text, changed in steps.changes(run, row.step, plan.where.size):
    step = next(s for s in _planned(changed, plan.where.size) if s.name == row.step.name)
    compiled = compiling.compile_program(step.build, plan.where)
    if not compiled.refused and compiled.total + row.beside <= plan.limit:
      total = (compiled.total + row.beside) / chips.GIB
      return f"{said}. It fits with {text}: {total:.2f} GiB"
  return f"{said}. Take more chips; a slice of {_chips(row, plan)} would hold it"


def _chips(row: table.ProgramRow, plan: table.Plan) -> int:
  """The power of two of chips whose memory holds what does not fit, if all of it is split."""
  need = plan.where.size
  while row.footprint * plan.where.size / need > plan.limit:
    need *= 2
  return need
