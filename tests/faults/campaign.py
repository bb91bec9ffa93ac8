# SPDX-License-Identifier: Apache-2.0
"""The fault campaign: what a run meets in the field, and what becomes of it.

  python -m tests.faults [--all]

A fault is a function that brings it about in a folder, checks what follows, and says it in one
line. No input here harms anything outside of that folder.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import resource
import subprocess
import sys
import time
import types
from unittest import mock

import numpy as np

from auditdm_jax.core import disk, jsonl, paths
from auditdm_jax.core.config import UserError
from auditdm_jax.core.image_store import Images
from auditdm_jax.images.disk_cache import DiskCache
from auditdm_jax.stages.run import RunFolder
from tests.faults import little


@dataclasses.dataclass(frozen=True)
class Seen:
  """What became of a fault: the outcome in words, and what shows it."""

  outcome: str
  evidence: str


@dataclasses.dataclass(frozen=True)
class Fault:
  """A fault by name; `dear` ones take minutes."""

  name: str
  bring: Callable[[pathlib.Path], Seen]
  dear: bool = False


def _one_line(ended: little.Ended, code: int) -> str:
  """Returns the line that a program ended with; there is no other and no traceback."""
  lines = ended.err.strip().splitlines()
  assert ended.code == code and len(lines) == 1, ended
  return lines[0]


def _program(body: str, workdir: pathlib.Path, **more: object) -> little.Ended:
  """Runs `python -m auditdm_jax audit` with `body` in the place of its stage."""
  source = f"""
import sys, types
from auditdm_jax import __main__ as main
def stage(config, workdir):
  {body}
main._stage = lambda module: types.SimpleNamespace(main=stage)
main.main(["train", "--config=configs/scenes.py", "--workdir={workdir}"])
"""
  done = subprocess.run(
    [sys.executable, "-c", source],
    cwd=little.ROOT,
    capture_output=True,
    text=True,
    check=False,
    timeout=300,
    **more,
  )
  return little.Ended(done.returncode, done.stdout, done.stderr)


def full_disk(root: pathlib.Path) -> Seen:
  """The disk takes 100 bytes of an append and then no more."""
  lines = jsonl.json_lines(root / "rows-0.jsonl")
  lines.append([{"i": i} for i in range(50)])
  before = lines.path.read_bytes()
  real, left = jsonl._write_all, [100]

  def full(f, data):
    real(f, data[: left[0]])
    raise OSError(errno.ENOSPC, "No space left on device")

  with mock.patch.object(jsonl, "_write_all", full), contextlib.suppress(OSError):
    lines.append([{"i": i} for i in range(50, 100)])
  assert lines.path.read_bytes() == before
  lines.append([{"i": 50}])
  assert [row["i"] for _, row in lines.iterate()] == list(range(51))
  return Seen("nothing half-written, the next append goes on", "50 rows before, 50 after, then 51")


def size_limit(root: pathlib.Path) -> Seen:
  """`ulimit -f` of 64 KiB: a file that must not grow further."""
  body = (
    "from auditdm_jax.core import jsonl\n"
    "  rows = jsonl.json_lines(workdir / 'rows-0.jsonl')\n"
    "  for i in range(100): rows.append([{'i': i, 'text': 'x' * 2000}])"
  )
  limit = (1 << 16, 1 << 16)
  said = _one_line(
    _program(
      body, root / "run", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    ),
    1,
  )
  rows = [row["i"] for _, row in jsonl.json_lines(root / "run/rows-0.jsonl").iterate()]
  assert rows == list(range(len(rows))) and 20 < len(rows) < 40 and "ulimit" in said, said
  return Seen("one line, exit 1, whole rows only", f"{said.replace(str(root), '')!r}")


def quota(root: pathlib.Path) -> Seen:
  """The quota of the disk is used up."""
  said = _one_line(
    _program("import errno; raise OSError(errno.EDQUOT, 'Disk quota exceeded')", root / "run"), 1
  )
  return Seen("one line, exit 1", repr(said))


def read_only(root: pathlib.Path) -> Seen:
  """A workdir in which nothing can be written."""
  refused = OSError(errno.EROFS, os.strerror(errno.EROFS))
  with mock.patch.object(paths.tempfile, "TemporaryFile", side_effect=refused):
    try:
      paths.made(root)
    except UserError as e:
      said = str(e)
  assert "nothing can be written there: Read-only file system" in said
  return Seen("one line, exit 2, before any work", repr(said.replace(str(root), "WORKDIR")))


def two_runs(root: pathlib.Path) -> Seen:
  """A second run in the workdir of one that is at work."""
  folder, other = (RunFolder(root, config_hash="") for _ in range(2))
  with folder.locked():
    try:
      with other.locked():
        raise AssertionError("both are at work")
    except UserError as e:
      said = str(e)
  with other.locked():
    pass
  assert f"process {os.getpid()}" in said
  return Seen("the second one ends with one line, exit 2", "says which process is at work")


def torn_record(root: pathlib.Path) -> Seen:
  """Records that end in the middle of a line, and one that is damaged in the middle."""
  lines = jsonl.json_lines(root / "rows-0.jsonl")
  lines.append([{"i": i} for i in range(10)])
  os.truncate(lines.path, lines.path.stat().st_size - 3)
  assert [row["i"] for _, row in lines.iterate()] == list(range(9))
  lines.append([{"i": 9}])
  whole = lines.path.read_bytes()
  assert len(whole.splitlines()) == 10
  lines.path.write_bytes(whole.replace(b'{"i":4}', b'{"i":4'))
  try:
    list(lines.iterate())
  except UserError as e:
    said = str(e)
  assert "rows-0.jsonl: damaged in the line before byte" in said
  return Seen("a torn row is written again; a damaged one is named", "file and byte are said")


def damaged_image(root: pathlib.Path) -> Seen:
  """An image that is cut, and one of the request cache that is not an image."""
  images, picture = Images(root / "images", fan_out=True), np.full((32, 32, 3), 7, np.uint8)
  image_id = images.put(picture)
  os.truncate(images.path(image_id), 40)
  try:
    images.get(image_id)
  except UserError as e:
    said = str(e)
  assert image_id in said and "remove it" in said
  cache = DiskCache(root / "cache")
  cache.put("m", "ab", picture)
  (path,) = (root / "cache").rglob("*.png")
  path.write_bytes(b"not a picture")
  assert cache.get("m", "ab", size=(32, 32)) is None and not path.exists()
  cache.put("m", "ab", picture)
  assert cache.get("m", "ab", size=(16, 16)) is None, "another size than was asked for"
  return Seen("the file is named; the request cache asks again", "id, path and remedy are said")


def missing_in_report(root: pathlib.Path) -> Seen:
  """A pool's image is damaged in the store, and a made one missing, when a report is written."""
  from auditdm_jax.stages import report
  from auditdm_jax.stages.pools import ImageSource

  pixels = np.arange(32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8)
  source = ImageSource(Images(root / "images", fan_out=True), cache_bytes=0)
  image_id = source.made.put(pixels)
  source._rows[image_id] = (types.SimpleNamespace(image=lambda i: pixels), 0)
  os.truncate(source.made.path(image_id), 40)
  run = types.SimpleNamespace(images=source)
  assert report._path(run, image_id) == source.made.path(image_id)
  np.testing.assert_array_equal(source.made.get(image_id), pixels)
  assert report._path(run, "0" * 64) is None
  try:
    source("0" * 64)
  except UserError as e:
    said = str(e)
  assert "an image that records name is missing" in said
  return Seen("written again from the pool; a missing one is left out", "a warning names the file")


def clock_jump(root: pathlib.Path) -> Seen:
  """The clock goes back by a day between two rows of metrics."""
  from auditdm_jax.core import metrics

  with metrics.Writer(root, "train", tensorboard=False) as writer:
    writer.write(0, {"loss": 1.0})
    now = time.time()
    with mock.patch.object(time, "time", lambda: now - 86_400):
      writer.write(1, {"loss": 0.5})
      with metrics.Progress(2, "train", after_s=0.0, every_s=0.0) as progress:
        progress.update(1)
  rows = [row for _, row in jsonl.json_lines(root / "metrics/train.jsonl").iterate()]
  assert [row["step"] for row in rows] == [0, 1] and rows[1]["time"] < rows[0]["time"]
  assert all(metrics.is_volatile(name) for name in ("time", "seconds/total"))
  return Seen("nothing depends on it", "order is by step; durations are of the monotonic clock")


def service_gone(root: pathlib.Path) -> Seen:
  """The image service is gone in the middle of a step."""
  body = (
    "from auditdm_jax.rl.probing import check_valid; import types\n"
    "  check_valid([types.SimpleNamespace(invalid='UNAVAILABLE: no\\x1b[2J connection')] * 4, 0.2,"
    " step=3)"
  )
  said = _one_line(_program(body, root / "run"), 75)
  assert "The same command continues" in said and "\x1b" not in said
  return Seen("one line, exit 75: launchers start it again", repr(said))


def service_gone_at_start(root: pathlib.Path) -> Seen:
  """The image service is not there when a run that had it goes on."""
  body = (
    "from auditdm_jax.stages import service; from auditdm_jax.images.config import ImagesConfig\n"
    "  c = ImagesConfig(address='127.0.0.1:9', ready_s=0.5)\n"
    "  service.connected(c, {}, local=workdir, known=KNOWN).__enter__()"
  )
  later = _one_line(_program(body.replace("KNOWN", "True"), root / "a"), 75)
  _one_line(_program(body.replace("KNOWN", "False"), root / "b"), 2)
  return Seen("one line; exit 75 if it was there before, else 2", repr(later))


def library_quotes(root: pathlib.Path) -> Seen:
  """A library hides a full disk in a message of its own."""
  try:
    try:
      raise ValueError("Error writing 'd/x': [OS error 28: ENOSPC No space left on device]")
    except ValueError as e:
      raise RuntimeError("save failed") from e
  except RuntimeError as e:
    said = disk.trouble(e)
  assert said == "the disk is full" and disk.trouble(ValueError("a bug")) is None
  return Seen("told as a full disk; a bug keeps its traceback", repr(said))


def killed_loop(root: pathlib.Path) -> Seen:
  """kill -9 at random moments of the whole loop, which is then run to its end."""
  data, rng = little.images(root / "data"), np.random.default_rng(0)
  straight, killed = root / "straight", root / "killed"
  ended = little.run(little.command("loop", straight, data))
  assert ended.code == 0, ended.err
  moments = [float(s) for s in rng.uniform(20, 90, 6)]
  ended, kills = little.run_killed(little.command("loop", killed, data), moments=moments)
  assert ended.code == 0, ended.err
  want, got = little.facts(straight), little.facts(killed)
  different = [name for name in want | got if want.get(name) != got.get(name)]
  assert not different, different
  return Seen("as the run that was not killed", f"{kills} kills, {len(want)} results equal")


def repair_off(root: pathlib.Path) -> Seen:
  """A loop that must not repair."""
  more = ("--config.rectify.enabled=False", "--config.optim.steps=0")
  ended = little.run(little.command("loop", root / "run", little.images(root / "data"), more))
  assert ended.code == 0 and not (root / "run/rectify/done.json").exists(), ended.err
  assert "config.rectify.enabled is False" in (root / "run/report/index.html").read_text()
  assert json.loads((root / "run/summary.json").read_text())["stopped"]
  return Seen("a report, exit 0", "the report says that repair is off")


FAULTS = (
  Fault("disk full in an append", full_disk),
  Fault("file-size limit", size_limit),
  Fault("disk quota", quota),
  Fault("disk full inside a library", library_quotes),
  Fault("read-only workdir", read_only),
  Fault("two runs in one workdir", two_runs),
  Fault("torn and damaged records", torn_record),
  Fault("damaged images", damaged_image),
  Fault("missing images of a report", missing_in_report),
  Fault("clock jumps back", clock_jump),
  Fault("image service gone", service_gone),
  Fault("image service gone at the start", service_gone_at_start),
  Fault("kill -9 of the loop", killed_loop, dear=True),
  Fault("repair off", repair_off, dear=True),
)
