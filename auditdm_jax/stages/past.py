# SPDX-License-Identifier: Apache-2.0
"""A finished run, opened again from its folder alone: its manifest holds the config."""

from collections.abc import Iterator
import contextlib
import os
import tempfile

from ml_collections import ConfigDict

from auditdm_jax.audit.attempt import Failure
from auditdm_jax.core import jsonio, paths
from auditdm_jax.core.config import UserError
from auditdm_jax.core.manifest import Manifest
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.remote import without_limits
from auditdm_jax.stages.results import Verified

_SHORTEST_ID = 4  # Digits of a failure's id that may stand for it.


@contextlib.contextmanager
def opened(
  workdir: str | os.PathLike, stage: str, *, config: ConfigDict | None = None
) -> Iterator[Context]:
  """The run in a folder, whose failures are verified.

  Endpoints are asked anew: what they answered earlier is not looked up.

  Args:
    workdir: its folder.
    stage: what opens it, for the manifest.
    config: the run's; None = as its manifest has it.

  Raises:
    UserError: there is no such run.
  """
  known = config_of(workdir)
  with (
    tempfile.TemporaryDirectory() as answers,
    Context(config or known, paths.as_path(workdir), stage, answers=answers) as ctx,
  ):
    ctx.folder.done("verify", Verified)  # One line, if another version wrote it.
    yield ctx


def config_of(workdir: str | os.PathLike) -> ConfigDict:
  """Returns the config that the failures of a run were verified with.

  Raises:
    UserError: the folder holds no run, or none whose failures are verified.
  """
  root = paths.as_path(workdir)
  if not (root / "manifest.json").exists():
    raise UserError(f"{workdir}: no folder of a run: it has no manifest.json")
  done = root / "verify" / "done.json"
  if not done.exists():
    raise UserError(f"{workdir}: nothing is verified there yet; run `audit` or `loop` to its end")
  wanted = jsonio.read_json(done)["config"]
  for stage in Manifest(root).read()["stages"].values():
    if jsonio.canonical_hash(without_limits(stage["config"])) == wanted:
      return ConfigDict(stage["config"])
  raise UserError(f"{workdir}: its manifest.json has not the config that {done} was made with")


def failure(ctx: Context, wanted: str) -> Failure:
  """Returns the failure of a run that an id, or the first digits of one, names.

  Raises:
    UserError: none or several.
  """
  first, found = None, []
  for f in ctx.folder.failures():
    first = first or f
    if f.probe.probe_id.startswith(wanted):
      found.append(f)
  if len(wanted) < _SHORTEST_ID or not found:
    example = f"; one is {first.probe.probe_id}" if first else ""
    raise UserError(
      f"{ctx.folder.path}: no failure {wanted!r:.80}; an id is on its card of the report, and"
      f" {_SHORTEST_ID} of its digits are enough{example}"
    )
  if len(found) > 1:
    few = ", ".join(f.probe.probe_id for f in found[:3])
    raise UserError(f"{wanted}: the start of {len(found)} failures' ids, such as {few}")
  return found[0]
