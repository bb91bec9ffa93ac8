# SPDX-License-Identifier: Apache-2.0
import io
import json
import math

import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator

from auditdm_jax.core import metrics


def rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def scalars(folder, tag):
  events = event_accumulator.EventAccumulator(str(folder))
  events.Reload()
  return [(e.step, e.value) for e in events.Scalars(tag)]


def test_means_divide_once():
  means = metrics.Means()
  means.add("loss", 6.0, 3)
  means.add("loss", np.float32(0), 1)
  means.add("reward", 0, 0)
  assert means.result()["loss"] == 1.5
  assert math.isnan(means.result()["reward"])


def test_means_go_on_after_a_checkpoint():
  means, resumed = metrics.Means(), metrics.Means()
  means.add("reward", 1 / 3, 1)
  resumed.load(json.loads(json.dumps(means.state())))
  for each in (means, resumed):
    each.add("reward", 0.7, 1)
  assert resumed.result() == means.result()


def test_columns_of_the_clock_and_the_machine_are_known():
  volatile = [
    n
    for n in ("time", "seconds/total", "reward", "machine/mfu/sample", "timeouts")
    if metrics.is_volatile(n)
  ]
  assert volatile == ["time", "seconds/total", "machine/mfu/sample"]


def test_timer_also_counts_what_raises():
  timer = metrics.Timer()
  with timer("rollout"):
    pass
  with pytest.raises(KeyError), timer("judge"):
    raise KeyError
  assert timer.seconds.keys() == {"rollout", "judge"}
  assert all(s >= 0 for s in timer.seconds.values())


def test_resumed_writer_does_not_duplicate_rows(tmp_path):
  with metrics.Writer(tmp_path, "train") as writer:
    for step in range(1, 5):
      writer.write(step, {"reward": np.float32(step), "loss": float("nan")})
  with metrics.Writer(tmp_path, "train", resume_step=2) as writer:
    assert [r["step"] for r in rows(writer.path)] == [1, 2]
    for step in (3, 4):
      writer.write(step, {"reward": 10.0 * step})
  found = rows(tmp_path / "metrics" / "train.jsonl")
  assert [(r["step"], r["reward"]) for r in found] == [(1, 1), (2, 2), (3, 30), (4, 40)]
  assert found[0]["loss"] is None
  expected = [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]
  assert scalars(tmp_path / "tensorboard" / "train", "reward") == expected


def test_writer_without_tensorboard(tmp_path):
  with metrics.Writer(tmp_path, "train", tensorboard=False) as writer:
    writer.write(0, {"reward": 1})
  assert [p.name for p in tmp_path.iterdir()] == ["metrics"]


def test_progress_prints_plain_lines_off_a_terminal(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
  stream = io.StringIO()
  with metrics.Progress(100, "train", done=50, stream=stream, every_s=10) as progress:
    for done in range(51, 101):
      now[0] += 1
      progress.update(done, reward=done / 300, gaps=6)
  lines = stream.getvalue().splitlines()
  assert lines[0] == "train  60/100  ETA 0:40  reward 0.2  gaps 6"
  assert lines[-1] == "train  100/100  in 0:50  reward 0.333  gaps 6"
  assert len(lines) == 6


class Terminal(io.StringIO):
  def isatty(self) -> bool:
    return True


def test_progress_draws_a_bar_on_a_terminal():
  stream = Terminal()
  with metrics.Progress(2, "train", stream=stream) as progress:
    progress.update(1, reward=0.25)
    progress.update(2, reward=0.5)
  assert "train" in stream.getvalue() and "2/2" in stream.getvalue()
  assert "reward 0.5" in stream.getvalue()


def test_what_is_done_soon_is_not_shown(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
  for stream in (io.StringIO(), Terminal()):
    with metrics.Progress(10, "read", stream=stream, after_s=5) as progress:
      now[0] += 4
      progress.update(9)
    assert stream.getvalue() == ""
    with metrics.Progress(10, "read", stream=stream, after_s=5) as progress:
      now[0] += 6
      progress.update(10)
    assert "read" in stream.getvalue() and "10/10" in stream.getvalue()
