# SPDX-License-Identifier: Apache-2.0
"""Faults of disks, files and clocks."""

import contextlib
import datetime
import errno
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time
import types
from unittest import mock

import numpy as np

from auditdm_jax.core import disk, jsonl, manifest, paths
from auditdm_jax.core.config import UserError
from auditdm_jax.core.image_store import Images
from auditdm_jax.images.disk_cache import DiskCache
from auditdm_jax.stages import runs
from auditdm_jax.stages.run import RunFolder
from tests.faults import little, seen


def full_disk(root: pathlib.Path) -> seen.Seen:
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
  return seen.Seen(
    "nothing half-written, the next append goes on", "50 rows before, 50 after, then 51"
  )


def size_limit(root: pathlib.Path) -> seen.Seen:
  """`ulimit -f` of 64 KiB: a file that must not grow further."""
  body = (
    "from auditdm_jax.core import jsonl\n"
    "  rows = jsonl.json_lines(workdir / 'rows-0.jsonl')\n"
    "  for i in range(100): rows.append([{'i': i, 'text': 'x' * 2000}])"
  )
  limit = (1 << 16, 1 << 16)
  said = seen.one_line(
    seen.program(
      body, root / "run", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    ),
    1,
  )
  rows = [row["i"] for _, row in jsonl.json_lines(root / "run/rows-0.jsonl").iterate()]
  assert rows == list(range(len(rows))) and 20 < len(rows) < 40 and "ulimit" in said, said
  return seen.Seen("one line, exit 1, whole rows only", f"{said.replace(str(root), '')!r}")


def quota(root: pathlib.Path) -> seen.Seen:
  """The quota of the disk is used up."""
  said = seen.one_line(
    seen.program("import errno; raise OSError(errno.EDQUOT, 'Disk quota exceeded')", root / "run"),
    1,
  )
  return seen.Seen("one line, exit 1", repr(said))


def read_only(root: pathlib.Path) -> seen.Seen:
  """A workdir in which nothing can be written."""
  refused = OSError(errno.EROFS, os.strerror(errno.EROFS))
  with mock.patch.object(paths.tempfile, "TemporaryFile", side_effect=refused):
    try:
      paths.made(root)
    except UserError as e:
      said = str(e)
  assert "nothing can be written there: Read-only file system" in said
  return seen.Seen("one line, exit 2, before any work", repr(said.replace(str(root), "WORKDIR")))


def two_runs(root: pathlib.Path) -> seen.Seen:
  """A second run in the workdir of one that is at work, which is then killed."""
  code = (
    "import sys; from auditdm_jax.stages.run import RunFolder\n"
    "with RunFolder(sys.argv[1], config_hash='').locked():\n"
    "  print('at work', flush=True); sys.stdin.read()"
  )
  other = RunFolder(root, config_hash="")
  with subprocess.Popen(
    [sys.executable, "-c", code, str(root)],
    cwd=little.ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  ) as first:
    assert first.stdout and first.stdout.readline() == "at work\n"
    try:
      with other.locked():
        raise AssertionError("both are at work")
    except UserError as e:
      said = str(e)
    first.send_signal(signal.SIGKILL)
    first.wait()
  assert f"process {first.pid} of this machine" in said and len(said.splitlines()) == 1
  with other.locked():
    pass
  return seen.Seen("the second one ends with one line, exit 2", "says which process is at work")


def torn_record(root: pathlib.Path) -> seen.Seen:
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
  return seen.Seen("a torn row is written again; a damaged one is named", "file and byte are said")


def damaged_image(root: pathlib.Path) -> seen.Seen:
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
  return seen.Seen(
    "the file is named; the request cache asks again", "id, path and remedy are said"
  )


def missing_in_report(root: pathlib.Path) -> seen.Seen:
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
  return seen.Seen(
    "written again from the pool; a missing one is left out", "a warning names the file"
  )


def clock_jump(root: pathlib.Path) -> seen.Seen:
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
  return seen.Seen(
    "nothing depends on it", "order is by step; durations are of the monotonic clock"
  )


def library_quotes(root: pathlib.Path) -> seen.Seen:
  """A library hides a full disk in a message of its own, of which tensorstore has had two kinds."""
  for quoted in ("[OS error 28: ENOSPC No space left on device]", "[os_error_code='28']"):
    try:
      try:
        raise ValueError(f"Error writing 'd/x': {quoted}")
      except ValueError as e:
        raise RuntimeError("save failed") from e
    except RuntimeError as e:
      said = disk.trouble(e)
    assert said == "the disk is full", quoted
  assert disk.trouble(ValueError("a bug")) is None
  return seen.Seen("told as a full disk; a bug keeps its traceback", repr(said))


def size_limit_of_a_checkpoint(root: pathlib.Path) -> seen.Seen:
  """`ulimit -f` of 1 MiB, which a checkpoint is larger than."""
  body = (
    "import numpy as np; from auditdm_jax.core.checkpoint import Checkpointer\n"
    "  draw = np.random.default_rng(0).random\n"
    "  with Checkpointer(workdir / 'checkpoints') as checkpoints:\n"
    "    for step, size in ((1, 1 << 10), (2, 1 << 20)):\n"
    "      checkpoints.save(step, {'w': draw(size)}, {}); checkpoints.wait()"
  )
  limit = (1 << 20, 1 << 20)
  ended = seen.program(
    body, root / "run", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)
  )
  said = ended.last
  steps = sorted(p.name for p in (root / "run/checkpoints").iterdir() if p.name.isdecimal())
  assert "ulimit -f" in said and steps == ["1"] and ended.code == 1, ended
  assert "Traceback" not in ended.err and "ERROR" not in ended.err, ended
  return seen.Seen("one line, exit 1; the checkpoint before it stays", repr(said))


def clock_between_stages(root: pathlib.Path) -> seen.Seen:
  """The clock goes back by a day between two stages, and the run is listed."""
  noted = manifest.Manifest(root)
  folder = RunFolder(root, config_hash="")

  real = datetime.datetime

  class Yesterday(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
      return real.now(tz) - datetime.timedelta(days=1)

  noted.record("train", config={}, seeds={})
  folder.finish("train", {})
  with mock.patch.object(manifest.datetime, "datetime", Yesterday):
    noted.record("discover", config={}, seeds={})
  folder.finish("discover", {})
  folder.add_seconds("discover", 1.0)
  started = {name: stage["started"] for name, stage in noted.read()["stages"].items()}
  (row,) = runs.rows_of(root)
  assert started["discover"] < started["train"] and row.state == "stopped after discover", row
  return seen.Seen("nothing depends on it", f"listed as {row.state!r}; durations are monotonic")
