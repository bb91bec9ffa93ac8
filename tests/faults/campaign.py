# SPDX-License-Identifier: Apache-2.0
"""The fault campaign: what a run meets in the field, and what becomes of it.

  python -m tests.faults [--all]

A fault is a function that brings it about in a folder, checks what follows, and says it in one
line. No input here harms anything outside of that folder.
"""

from collections.abc import Callable
import dataclasses
import json
import pathlib
import resource

import numpy as np

from tests.faults import files, little, models, seen, services


@dataclasses.dataclass(frozen=True)
class Fault:
  """A fault by name; `dear` ones take minutes."""

  name: str
  bring: Callable[[pathlib.Path], seen.Seen]
  dear: bool = False


def killed_loop(root: pathlib.Path) -> seen.Seen:
  """kill -9 at random moments of the whole loop, which is then run to its end."""
  data, rng = little.images(root / "data"), np.random.default_rng()
  straight, killed = root / "straight", root / "killed"
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  ended = little.run(little.command("loop", straight, data), timeout_s=7200)
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  assert ended.code == 0, ended.err
  whole = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
  # Soon after a start, in evaluation and training; then later, so that it comes to all else.
  shares = np.concatenate([rng.uniform(0.04, 0.18, 9), rng.uniform(0.08, 0.35, 5)])
  moments = [float(s) for s in whole * shares]
  ended, kills = little.run_killed(little.command("loop", killed, data), killed, moments=moments)
  assert ended.code == 0 and len(kills) >= 10, (ended.err, kills)
  want, got = little.facts(straight), little.facts(killed)
  different = [name for name in want | got if want.get(name) != got.get(name)]
  assert not different, different
  return seen.Seen(
    "as the run that was not killed",
    f"{len(kills)} kills after {', '.join(kills)}; {len(want)} records, models and results equal",
  )


def repair_off(root: pathlib.Path) -> seen.Seen:
  """A loop that must not repair."""
  more = ("--config.rectify.enabled=False", "--config.optim.steps=0")
  ended = little.run(little.command("loop", root / "run", little.images(root / "data"), more))
  assert ended.code == 0 and not (root / "run/rectify/done.json").exists(), ended.err
  assert "config.rectify.enabled is False" in (root / "run/report/index.html").read_text()
  assert json.loads((root / "run/summary.json").read_text())["stopped"]
  return seen.Seen("a report, exit 0", "the report says that repair is off")


FAULTS = (
  Fault("disk full in an append", files.full_disk),
  Fault("file-size limit", files.size_limit),
  Fault("file-size limit in a checkpoint", files.size_limit_of_a_checkpoint),
  Fault("disk quota", files.quota),
  Fault("disk full inside a library", files.library_quotes),
  Fault("read-only workdir", files.read_only),
  Fault("two runs in one workdir", files.two_runs),
  Fault("torn and damaged records", files.torn_record),
  Fault("damaged images", files.damaged_image),
  Fault("missing images of a report", files.missing_in_report),
  Fault("a bit flips in a checkpoint", models.flipped_checkpoint),
  Fault("a bit flips in a model", models.flipped_model),
  Fault("clock jumps back in a stage", files.clock_jump),
  Fault("clock jumps back between stages", files.clock_between_stages),
  Fault("image service gone", services.service_gone),
  Fault("image service gone at the start", services.service_gone_at_start),
  Fault("garbage from the image service", services.service_garbage),
  Fault("noise in the image service's place", services.service_noise),
  Fault("a protoc that cannot run", services.no_protoc),
  Fault('a model that answers "" or 10,000 tokens', models.strange_answers),
  Fault("no live group in all of training", models.no_live_groups, dear=True),
  Fault("NaN weights", models.nan_weights, dear=True),
  Fault("kill -9 of the loop", killed_loop, dear=True),
  Fault("repair off", repair_off, dear=True),
)
