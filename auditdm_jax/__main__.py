# SPDX-License-Identifier: Apache-2.0
"""Runs one stage: `python -m auditdm_jax STAGE --config=configs/X.py[:args] --workdir=DIR`.

Any value of the config can be overridden: `--config.a.b=c`. The same command run again resumes.
`answer`, `compare`, `convert`, `export`, `import`, `label`, `leaks`, `minimise`, `pack`, `plan`,
`repro` and `serve` take flags of their own, which --help after the stage lists; `audit` makes a
config of its flags.
"""

import ast
from collections.abc import Iterator
import contextlib
import errno
import importlib
import pathlib
import signal
import sys
import traceback
from types import FrameType, ModuleType
from typing import Any, NoReturn

from absl import flags
from ml_collections import config_flags

from auditdm_jax import stages
from auditdm_jax.core import overrides, paths
from auditdm_jax.core.config import OVERRIDES, UserError, did_you_mean

# Runs in an environment of its own, which need not have jax, and leaves nothing behind.
_SERVERS = {"serve_images"}
# Run once and from flags of their own, `FLAGS`, instead of a config and a folder of results.
_TOOLS = {
  "answer",
  "compare",
  "convert",
  "export",
  "import",
  "label",
  "leaks",
  "minimise",
  "pack",
  "plan",
  "repro",
  "serve",
}
# Those of them that take arguments without names: `main` gets them.
_WORDS = {"compare", "leaks", "minimise", "repro"}
# Look at what a run would need, in a temporary folder if none is given.
_LOOKS = {"doctor"}
# Stages that take flags in place of a config, and the module of these.
_SHORT = {"audit": "own"}
_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "The config, such as configs/scenes.py.", **OVERRIDES
)
_WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the run; made if it is not there.")
_DEVICES = flags.DEFINE_integer("devices", 0, "Split the CPU into so many devices.", lower_bound=0)
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "This is one of several processes.")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "host:port of process 0; '' = asks.")
_PROCESSES = flags.DEFINE_integer("processes", 0, "How many; 0 = asks.", lower_bound=0)
_PROCESS = flags.DEFINE_integer("process", -1, "Which one this is; -1 = asks.", lower_bound=-1)


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
  """Returns the help text."""
  rows = [f"  {name:14}{doc}" for name, doc in list_stages().items()]
  return "\n".join(
    [
      "usage: python -m auditdm_jax STAGE --config=configs/X.py[:args] --workdir=DIR"
      " [--config.a.b=c] [--devices=N]",
      *rows,
      f"{', '.join(sorted(_TOOLS | _SHORT.keys()))} have other flags: --help after the stage lists"
      " them.",
      "The same command run again continues where it stopped.",
      "Several processes: --distributed on each of them. TPU pods, GKE, SLURM and Open MPI tell the"
      " rest; elsewhere --coordinator=host:port --processes=N --process=K.",
    ]
  )


def tool_usage(module: str) -> str:
  """Returns the help text of a stage that has flags of its own."""
  own = _stage(_SHORT.get(module, module))
  return f"{_stage(module).__doc__}\n{own.FLAGS.module_help(own)}"


def parse(argv: list[str]) -> tuple[str, list[str]]:
  """Parses the flags and returns the module name of the stage, and arguments that are no flags.

  Raises:
    UserError: no such stage, or flags that cannot be read.
  """
  known = list_stages()
  if not argv or argv[0].startswith("-"):
    raise UserError("the first argument names the stage\n" + usage())
  stage = argv[0].replace("_", "-")
  if stage not in known:
    raise UserError(f"no stage {argv[0]!r}{did_you_mean(stage, known)}\n" + usage())
  module = stage.replace("-", "_")
  own = _stage(module).FLAGS if module in _TOOLS else flags.FLAGS
  if module in _SHORT:
    argv = _stage(_SHORT[module]).expand(argv)
  argv = overrides.take(argv)
  sys.argv = [sys.argv[0], *argv]  # Where ml_collections looks for overrides.
  rest = overrides.parse_flags(own, argv[1:])
  if rest and module not in _WORDS:
    raise UserError(f"not a flag: {' '.join(rest)}; flags are written --name=value")
  if module in _TOOLS:
    return module, rest
  if _CONFIG.value is None:
    raise UserError("--config is missing, such as --config=configs/scenes.py")
  given = next((arg for arg in argv if arg.startswith("--config")), "--config")
  overrides.locked(_CONFIG.value, given)
  if _WORKDIR.value is None and module not in _SERVERS | _LOOKS:
    raise UserError("--workdir is missing: where the results go, such as --workdir=runs/first")
  return module, rest


@contextlib.contextmanager
def _mistakes() -> Iterator[None]:
  """What absl and ml_collections say of flags that cannot be read becomes a UserError."""
  try:
    yield
  except UserError:
    raise
  except (AttributeError, KeyError) as e:  # Of ml_collections, with a repr inside a repr.
    message = str(e).replace("\\n", " ").translate({ord(c): None for c in "'\"\\"})
    raise UserError(f"--config.…: no such key: {message}") from e
  except (flags.Error, OSError, TypeError, ValueError) as e:
    # Of a complaint raised by the config file itself only the last line, not ml_collections' trace.
    raise UserError(str(e).strip().rpartition("\n")[2]) from e


def run(argv: list[str]) -> int:
  """Runs the stage that the arguments name and returns the exit code."""
  if not argv or {"--help", "-h", "-help"} & set(argv):
    tool = argv[0].replace("-", "_") if argv else ""
    print(tool_usage(tool) if tool in _TOOLS | _SHORT.keys() else usage())
    return 0 if argv else 2
  signal.signal(signal.SIGTERM, _terminate)
  try:
    module, words = parse(argv)
    if module in _TOOLS:
      importlib.import_module("auditdm_jax.core.runtime").setup()
      try:
        return _stage(module).main(words) if module in _WORDS else _stage(module).main()
      except OSError as e:  # Of a path that a flag names; it says which.
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
    return 2
  except OSError as e:
    if e.errno != errno.ENOSPC:
      raise
    where = f" of {e.filename}" if e.filename else ""
    print(
      f"auditdm_jax: the disk{where} is full; run the same command to continue", file=sys.stderr
    )
    return 1
  except _Terminated:
    print("terminated; run the same command to continue", file=sys.stderr)
    return 128 + signal.SIGTERM
  except KeyboardInterrupt:
    print("\ninterrupted; run the same command to continue", file=sys.stderr)
    return 128 + signal.SIGINT


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


def _stage(module: str) -> ModuleType:
  return importlib.import_module(f"auditdm_jax.stages.{module}")


def _terminate(signum: int, frame: FrameType | None) -> None:
  raise _Terminated


if __name__ == "__main__":
  main(sys.argv[1:])
