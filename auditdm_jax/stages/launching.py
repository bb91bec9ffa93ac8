# SPDX-License-Identifier: Apache-2.0
"""The runs of a sweep as commands, for this machine or by the launchers of a cluster."""

from collections.abc import Iterator
import hashlib
import re
import shlex
from types import MappingProxyType

from auditdm_jax.core.config import UserError
from auditdm_jax.stages.cells import TARGETS, Plan

_SCRIPTS = MappingProxyType(
  {"tpu": "launch/tpu/pod.sh", "gke": "launch/gke/jobset.sh", "slurm": "launch/gpu/slurm.sh"}
)
KINDS = ("local", *_SCRIPTS)
_NAMED = ("tpu", "gke")  # Their jobs have names.
_LONGEST = 40  # Of a name, with room for what Kubernetes appends.


def lines(planned: Plan, root: str, *, kind: str, flags: str = "") -> Iterator[str]:
  """Yields the commands, one a line, with comments between them.

  Args:
    planned: the runs.
    root: the folder of the sweep.
    kind: one of `KINDS`.
    flags: of the launcher, as a shell reads them.

  Raises:
    UserError: the flags cannot be read.
  """
  try:
    more = shlex.split(flags)
  except ValueError as e:
    raise UserError(f"--launch={flags}: {e}") from e
  if more and kind == "local":
    raise UserError(f"--launch={flags}: --print=local has no launcher")
  targets = planned.targets
  if targets:
    yield "# First the targets of the seeds, each of which its cells share:"
  for seed, spec in targets.items():
    args = ["pretrain", f"--config={spec}", f"--workdir={root}/{TARGETS}/{seed}"]
    yield shlex.join(_command("local", "", [], args))
  if targets:
    yield "# Then, in any order:"
  for run in planned.runs:
    args = [*run.args, f"--workdir={root}/{run.name}"]
    yield shlex.join(_command(kind, job_name(run.name), more, args))


def _command(kind: str, name: str, flags: list[str], args: list[str]) -> list[str]:
  if kind == "local":
    return ["python", "-m", "auditdm_jax", *args]
  return [_SCRIPTS[kind], *([name] if kind in _NAMED else []), *flags, "--", *args]


def job_name(run: str) -> str:
  """Returns a name for a cluster, of small letters, digits and dashes, by CELL/SEED.

  What such a name cannot hold is told apart by a hash.
  """
  plain = re.sub("[^a-z0-9]+", "-", run.lower()).strip("-")
  if plain.replace("-", "/") == run.replace("-", "/") and len(plain) <= _LONGEST:
    return plain
  tail = hashlib.sha256(run.encode()).hexdigest()[:6]
  return f"{plain[: _LONGEST - 7].strip('-')}-{tail}"
