# SPDX-License-Identifier: Apache-2.0
"""Runs one stage: `auditdm STAGE --config=configs/X.py[:args] --workdir=DIR`.

`python -m auditdm_jax STAGE` is the same. Any value of the config can be overridden:
`--config.a.b=c`; `--config.a=help` lists the section `a`. The same command run again resumes.
Stages of `_TOOLS` take flags of their own, which --help after the stage lists; `audit` makes a
config of its flags.
"""

import ast
import importlib
import os
import pathlib
import signal
import sys
import traceback
from types import FrameType, ModuleType
from typing import Any, NoReturn

from absl import flags

from auditdm_jax import stages
from auditdm_jax.core import disk, overrides, paths
from auditdm_jax.core.config import TryLater, UserError, did_you_mean

# Runs in an environment of its own, which need not have jax, and leaves nothing behind.
_SERVERS = {"serve_images"}
# Run once and from flags of their own, `FLAGS`, instead of a config and a folder of results.
_TOOLS = {
  "answer",
  "compare",
  "convert",
  "export",
  "import",
  "init",
  "label",
  "leaks",
  "minimise",
  "pack",
  "plan",
  "report",
  "repro",
  "runs",
  "serve",
  "sweep",
}
# Those of them that take arguments without names: `main` gets them.
_WORDS = {"compare", "leaks", "minimise", "repro", "runs"}
# Need no config where the folder says what it is.
_BY_FOLDER = {"table"}
# Look at what a run would need, in a temporary folder if none is given.
_LOOKS = {"doctor"}
# Stages that take flags in place of a config, and the module of these.
_SHORT = {"audit": "own"}
# Stages whose config is not that of an audit: the module and the dataclass that it is read into.
_SECTIONS = {
  **dict.fromkeys(("logs", "predict", "score", "table"), ("benchmarks", "BenchmarksConfig")),
  "pretrain": ("pretrain", "PretrainConfig"),
  "serve_images": ("serve_images", "ServedConfig"),
}
_CONFIG = overrides.define("The config, such as configs/scenes.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the run; made if it is not there.")
_DEVICES = flags.DEFINE_integer("devices", 0, "Split the CPU into so many devices.", lower_bound=0)
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "This is one of several processes.")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "host:port of process 0; '' = asks.")
_PROCESSES = flags.DEFINE_integer("processes", 0, "How many; 0 = asks.", lower_bound=0)
_PROCESS = flags.DEFINE_integer("process", -1, "Which one this is; -1 = asks.", lower_bound=-1)


_HELP = {"--help", "-h", "-help", "help"}
_FIRST = """\
usage: auditdm STAGE [flags]      python -m auditdm_jax STAGE [flags] is the same

First:
  auditdm audit --auditor=DIR --target=DIR --references=DIR,DIR --images=DIR --workdir=runs/first
      from your own models and images to a report: runs/first/report/index.html
  auditdm doctor --config=configs/paligemma2.py
      whether a config would run on this machine, without training anything
  auditdm loop --config=configs/scenes.py --workdir=runs/scenes
      all of AuditDM in a world of drawn scenes, in minutes on two CPU cores

Stages; `auditdm STAGE --help` says what one reads, writes and costs, and its flags:"""
_COMMON = """\
Flags of stages with a config:
  --config=FILE[:ARGS]   a Python file such as configs/scenes.py:target=rare
  --config.KEY=VALUE     any key of it: --config.optim.steps=300; docs/config.md has them all
  --config.KEY=help      lists a section with types, defaults and meanings; --config=help lists all
  --workdir=DIR          where results go; a folder, or gs://BUCKET/RUN
  --devices=N            splits the CPU into N devices
  --distributed          one of several processes. TPU pods, GKE, SLURM and Open MPI tell the rest;
                         elsewhere --coordinator=host:port --processes=N --process=K
The same command run again continues where it stopped."""


class _Terminated(KeyboardInterrupt):
  """SIGTERM: unwinds like Ctrl-C, so that files and child processes are closed."""


def list_stages() -> dict[str, str]:
  """Returns the stages and the first lines of their docstrings, without importing them.

  A stage is a module of `stages` with a `main`; the others there are what stages share.
  """
  found = {}
  for path in sorted(pathlib.Path(stages.__path__[0]).glob("*.py")):
    module = ast.parse(path.read_text(encoding="utf-8"))
    if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in module.body):
      doc = ast.get_docstring(module) or ""
      found[path.stem.replace("_", "-")] = doc.partition("\n")[0]
  return found


def usage() -> str:
  """Returns the help text: what people need first, then all stages."""
  rows = [
    f"  {name:13}{doc.removeprefix(f'{name}: ').rstrip('.')}" for name, doc in list_stages().items()
  ]
  return "\n".join([_FIRST, *rows, "", _COMMON])


def stage_usage(module: str) -> str:
  """Returns the help text of one stage: what it does, reads, writes and costs, and its flags."""
  flagged = module in _TOOLS | _SHORT.keys()
  own = _stage(_SHORT.get(module, module)) if flagged else None
  about = ast.get_docstring(ast.parse(_path(module).read_text(encoding="utf-8"))) or ""
  if own is None:
    return f"{about}\n\n{_COMMON}"
  _, _, listed = own.FLAGS.module_help(own).lstrip().partition("\n")  # Without the module's name.
  return f"{about}\n\nFlags:\n{listed}"


def named_stage(argv: list[str]) -> str:
  """Returns the module name of the stage that the first argument names.

  Raises:
    UserError: it names no stage.
  """
  known = list_stages()
  if not argv or argv[0].startswith("-"):
    raise UserError("the first argument names the stage\n" + usage())
  stage = argv[0].replace("_", "-")
  if stage not in known:
    raise UserError(f"no stage {argv[0]!r}{did_you_mean(stage, known)}\n" + usage())
  return stage.replace("-", "_")


def parse(argv: list[str], module: str) -> list[str]:
  """Parses the flags of a stage and returns arguments that are no flags.

  Raises:
    UserError: flags that cannot be read.
  """
  own = _stage(module).FLAGS if module in _TOOLS else flags.FLAGS
  if module in _SHORT:
    argv = _stage(_SHORT[module]).expand(argv)
  sys.argv = [sys.argv[0], *argv]  # As manifests and reports tell it.
  _, given = overrides.split(argv[1:])
  sections = _sections(module) if given and "config" in own else None  # Seconds of importing.
  rest = overrides.parse_flags(own, argv[1:], sections)
  if rest and module not in _WORDS:
    raise UserError(f"not a flag: {' '.join(rest)}; flags are written --name=value")
  if module in _TOOLS:
    return rest
  if _CONFIG.value is None and module not in _BY_FOLDER:
    raise UserError("--config is missing, such as --config=configs/scenes.py")
  if _WORKDIR.value is None and module not in _SERVERS | _LOOKS:
    raise UserError("--workdir is missing: where the results go, such as --workdir=runs/first")
  return rest


def run(argv: list[str]) -> int:
  """Runs the stage that the arguments name and returns the exit code."""
  if not argv or argv[0] in _HELP:
    _say(usage())
    return 0 if argv else 2
  signal.signal(signal.SIGTERM, _terminate)
  try:
    module = named_stage(argv)
    if _HELP & set(argv[1:]):
      _say(stage_usage(module))
      return 0
    if overrides.asks_help(argv):
      _say(overrides.listing(argv, _sections(module)))
      return 0
    words = parse(argv, module)
    if module in _TOOLS:
      importlib.import_module("auditdm_jax.core.runtime").setup()
      try:
        return _stage(module).main(words) if module in _WORDS else _stage(module).main()
      except OSError as e:  # Of a path that a flag names; it says which.
        if disk.trouble(e):
          raise
        raise UserError(str(e)) from e
    workdir = _workdir()
    if module not in _SERVERS:
      runtime = importlib.import_module("auditdm_jax.core.runtime")
      runtime.setup(devices=_DEVICES.value, cluster=_cluster(runtime))
      with runtime.together():
        return _stage(module).main(_CONFIG.value, workdir)
    return _stage(module).main(_CONFIG.value, workdir)
  except UserError as e:
    print(f"auditdm_jax: {e}", file=sys.stderr)
    return os.EX_TEMPFAIL if isinstance(e, TryLater) else 2
  except Exception as e:
    if (said := disk.trouble(e)) is None:
      raise
    print(f"auditdm_jax: {said}; run the same command to continue", file=sys.stderr)
    return 1
  except _Terminated:
    print("terminated; run the same command to continue", file=sys.stderr)
    return 128 + signal.SIGTERM
  except KeyboardInterrupt:
    print("\ninterrupted; run the same command to continue", file=sys.stderr)
    return 128 + signal.SIGINT


def _say(text: str) -> None:
  """Prints a help; its reader, such as `head`, may leave before the end."""
  try:
    print(text, flush=True)
  except BrokenPipeError:  # The interpreter flushes again when it ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(argv: list[str]) -> NoReturn:
  """`run`, and the end of the process."""
  try:
    code = run(argv)
  except SystemExit as e:
    code = e.code
  except Exception:  # A bug: no other process may be waited for, as an exit by it would.
    traceback.print_exc()
    code = 1
  if "jax" in sys.modules:
    importlib.import_module("auditdm_jax.core.runtime").leave(code)
  sys.exit(code)


def script() -> NoReturn:
  """The console script `auditdm`: finds modules of the current folder, as `python -m` does."""
  if (here := os.getcwd()) not in sys.path and "" not in sys.path:
    sys.path.insert(0, here)
  main(sys.argv[1:])


def _workdir() -> Any:
  """The folder of the run, which is made; None without one."""
  if _WORKDIR.value is None:
    return None
  try:
    return paths.made(_WORKDIR.value)
  except UserError as e:
    raise UserError(f"--workdir={e}") from e


def _cluster(runtime: ModuleType) -> Any:
  """The processes to join, as the flags say; None for a run of one."""
  if not _DISTRIBUTED.value:
    if _COORDINATOR.value or _PROCESSES.value or _PROCESS.value >= 0:
      raise UserError("--coordinator, --processes and --process need --distributed")
    return None
  return runtime.Cluster(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)


def _path(module: str) -> pathlib.Path:
  return pathlib.Path(stages.__path__[0], f"{module}.py")


def _sections(module: str) -> type:
  """Returns the dataclass that the config of a stage is read into."""
  place, name = _SECTIONS.get(module, ("sections", "AuditConfig"))
  return vars(_stage(place))[name]


def _stage(module: str) -> ModuleType:
  return importlib.import_module(f"auditdm_jax.stages.{module}")


def _terminate(signum: int, frame: FrameType | None) -> None:
  raise _Terminated


if __name__ == "__main__":
  main(sys.argv[1:])
