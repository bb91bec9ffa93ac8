# SPDX-License-Identifier: Apache-2.0
"""Where a loop spends its time, by stage and by phase of a GRPO step, as a Markdown table.

COMMAND
  python -m benchmarks.profile --config=configs/scenes.py --workdir=runs/profile
    [--config.KEY=VALUE]

Runs the loop, or what is left of it, in this process; stages that are done are not in the table. A
stage is measured around its body and a step is read from what the trainers log anyway, so that
what is measured is what users run. docs/speed.md says how to read the table.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import pathlib
import resource
import sys
import time
from typing import Any, Self, TypeVar

from absl import flags
import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np

from auditdm_jax.core import jsonio, jsonl, machine, overrides, paths, runtime
from auditdm_jax.core.config import UserError
from auditdm_jax.stages import loop, sections
from auditdm_jax.stages.context import Context

T = TypeVar("T")

_CONFIG = overrides.define("The config, such as configs/scenes.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the run; made if it is not there.")
_COMPILED = "/jax/core/compile/backend_compile_duration"
_TRACED = (
  "/jax/core/compile/jaxpr_trace_duration",
  "/jax/core/compile/jaxpr_to_mlir_module_duration",
)
_HIT = "/jax/compilation_cache/cache_hits"
_SIDE = 1024  # Of the matrices whose product is the floor.


@dataclasses.dataclass(frozen=True)
class Spent:
  """What the process has spent so far, or between two times.

  Attributes:
    seconds: by the clock.
    cpu: seconds of all threads, and of child processes that ended.
    programs: that were compiled or loaded.
    loaded: those of them that the cache on disk had.
    compiling: seconds of the compiler, or of loading.
    tracing: seconds in which Python made programs of functions.
    answers: of all models.
  """

  seconds: float = 0.0
  cpu: float = 0.0
  programs: int = 0
  loaded: int = 0
  compiling: float = 0.0
  tracing: float = 0.0
  answers: int = 0

  def __sub__(self, other: Self) -> Self:
    mine = {name: x - vars(other)[name] for name, x in vars(self).items()}
    return dataclasses.replace(self, **mine)

  def __add__(self, other: Self) -> Self:
    mine = {name: x + vars(other)[name] for name, x in vars(self).items()}
    return dataclasses.replace(self, **mine)


class Watch:
  """Hears of jax's compilations and reads the clocks."""

  def __init__(self):
    self._programs = self._loaded = 0
    self._compiling = self._tracing = 0.0
    jax.monitoring.register_event_duration_secs_listener(self._hear_duration)
    jax.monitoring.register_event_listener(self._hear)

  def _hear_duration(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
    del kwargs
    if event == _COMPILED:
      self._programs += 1
      self._compiling += duration_secs
    elif event in _TRACED:
      self._tracing += duration_secs

  def _hear(self, event: str, **kwargs: str | int) -> None:
    del kwargs
    self._loaded += event == _HIT

  def now(self, answers: int) -> Spent:
    """Returns what was spent so far."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return Spent(
      time.perf_counter(),
      sum(u.ru_utime + u.ru_stime for u in used),
      self._programs,
      self._loaded,
      self._compiling,
      self._tracing,
      answers,
    )


class WatchedContext(Context):
  """A context that knows what each of its stages spent; those of later rounds are in it too.

  Attributes:
    spent_by: by stage, those inside of a later round by "round N: STAGE".
  """

  def __init__(self, *args: Any, watch: Watch, **kwargs: Any):
    self._watch, self.spent_by = watch, dict[str, Spent]()
    super().__init__(*args, **kwargs)

  def stage(self, name: str, body: Callable[[], T]) -> T:
    """As `Context.stage`."""
    before = self._watch.now(self._answered)
    result = super().stage(name, body)
    inside = "" if self.round.is_first else f"round {self.round.number}: "
    spent = self._watch.now(self._answered) - before
    self.spent_by[inside + name] = self.spent_by.get(inside + name, Spent()) + spent
    return result

  @property
  def _answered(self) -> int:
    return sum(n for what, n in self.models.answers().items() if what.startswith("answers/"))


def floor() -> float:
  """Returns the FLOP/s of a large product of f32 matrices: the most that this machine gives."""
  product = jax.jit(jnp.matmul)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(_SIDE, _SIDE)), jnp.float32)
  product(x, x).block_until_ready()
  times = []
  for _ in range(7):
    start = time.perf_counter()
    product(x, x).block_until_ready()
    times.append(time.perf_counter() - start)
  return 2 * _SIDE**3 / min(times)


def stage_rows(spent: Mapping[str, Spent]) -> list[str]:
  """Returns the table of the stages, dearest first."""
  total = sum(s.cpu for name, s in spent.items() if ": " not in name)
  rows = [
    "| stage | s | CPU s | of CPU | programs (cached) | compiling s | tracing s | answers |",
    "|---|---|---|---|---|---|---|---|",
  ]
  for name, s in sorted(spent.items(), key=lambda item: -item[1].cpu):
    rows.append(
      f"| {name} | {s.seconds:.1f} | {s.cpu:.1f} | {s.cpu / max(total, 1e-9):.1%} |"
      f" {s.programs} ({s.loaded}) | {s.compiling:.1f} | {s.tracing:.1f} | {s.answers:,} |"
    )
  return rows


def step_rows(folder: pathlib.Path) -> list[str]:
  """Returns the table of a GRPO step's phases: medians over the steps, the first two left out."""
  steps = [row for _, row in jsonl.json_lines(folder / "metrics" / "train.jsonl").iterate()][2:]
  if not steps:
    return []
  rows = ["| phase of a GRPO step | s | of the floor |", "|---|---|---|"]
  for key in [k for k in steps[0] if k.startswith("seconds/")]:
    phase = key.removeprefix("seconds/")
    share = [s[f"machine/mfu/{phase}"] for s in steps if f"machine/mfu/{phase}" in s]
    told = f"{np.median(share):.1%}" if share else ""
    rows.append(f"| {phase} | {np.median([s.get(key, 0.0) for s in steps]):.4f} | {told} |")
  tokens = np.median([s["machine/tokens_per_s"] for s in steps])
  return [*rows, "", f"GRPO: {tokens:,.0f} tokens/s, {len(steps)} steps."]


def tuning_rows(folder: pathlib.Path) -> list[str]:
  """Returns a line for each fine-tuning: medians of what it logs."""
  lines = []
  for path in sorted((folder / "rectify" / "metrics").glob("*.jsonl")):
    rows = [row for _, row in jsonl.json_lines(path).iterate()]
    speed, waits = (
      np.median([r[f"machine/{name}"] for r in rows]) for name in ("tokens_per_s", "waiting")
    )
    lines.append(f"{path.stem}: {speed:,.0f} tokens/s, waits for input {waits:.1%} of the time.")
  return lines


def main(argv: Sequence[str]) -> int:
  try:
    overrides.parse_flags(flags.FLAGS, list(argv[1:]), sections.AuditConfig)
    if _CONFIG.value is None or _WORKDIR.value is None:
      raise UserError("--config and --workdir are needed")
    runtime.setup()
    config, folder = _CONFIG.value, paths.made(_WORKDIR.value)
    # The same when the run goes on: it is in the config, of which a folder has one.
    fastest = jsonio.read_json(known) if (known := folder / "floor.json").exists() else floor()
    jsonio.write_json(known, fastest)
    config.checkpoints.peak_tflops = round(fastest / 1e12, 4)
    watch = Watch()
    with runtime.together(), WatchedContext(config, folder, "loop", watch=watch) as ctx:
      loop.run(ctx)
    parts = [stage_rows(ctx.spent_by), step_rows(folder), tuning_rows(folder)]
  except UserError as e:
    print(f"benchmarks.profile: {e}", file=sys.stderr)
    return 2
  print(f"\nFloor: {fastest / 1e9:.1f} GFLOP/s.", end=" ")
  print(f"Peak memory: {machine.peak_memory() / 2**30:.2f} GiB.\n")
  print("\n\n".join("\n".join(part) for part in parts if part))
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv))
