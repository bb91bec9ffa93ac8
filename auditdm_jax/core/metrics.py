# SPDX-License-Identifier: Apache-2.0
"""Numbers of a run: means that add up, writers, phase timers, a progress line with an ETA."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import pathlib
import sys
import time
from typing import Any, TextIO

import rich.console
import rich.progress

# Generated modules without stubs.
from tensorboard.compat.proto.event_pb2 import (
  Event,  # pyright: ignore[reportAttributeAccessIssue]
  SessionLog,  # pyright: ignore[reportAttributeAccessIssue]
)
from tensorboard.compat.proto.summary_pb2 import (
  Summary,  # pyright: ignore[reportAttributeAccessIssue]
)
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from auditdm_jax.core import jsonl, paths
from auditdm_jax.core.wandb_log import WandbConfig, WandbSeries

# Columns that differ between two runs that are otherwise the same.
_VOLATILE = ("seconds/", "machine/")
FLOPS = "machine/flops/"  # Columns of the work of a phase, of all devices.


def is_volatile(name: str) -> bool:
  """Returns whether a column is about the clock or the machine, and not about the run."""
  return name == "time" or name.startswith(_VOLATILE)


class Means:
  """Sums and counts by name; divided once, when asked for the means."""

  def __init__(self):
    self._pairs: dict[str, tuple[float, float]] = {}

  def add(self, name: str, total: float, count: float = 1) -> None:
    """Adds a sum over `count` elements."""
    old_total, old_count = self._pairs.get(name, (0.0, 0.0))
    self._pairs[name] = (old_total + float(total), old_count + float(count))

  def result(self) -> dict[str, float]:
    """Returns the means; NaN for a name that has counted nothing."""
    return {k: t / c if c else float("nan") for k, (t, c) in self._pairs.items()}

  def state(self) -> dict[str, list[float]]:
    """Returns the sums and counts, for a checkpoint."""
    return {name: list(pair) for name, pair in self._pairs.items()}

  def load(self, state: Mapping[str, Sequence[float]]) -> None:
    """Restores `state`."""
    self._pairs = {name: (total, count) for name, (total, count) in state.items()}


class Timer:
  """Seconds per phase: `with timer("rollout"): …`, then `timer.seconds`."""

  def __init__(self):
    self.seconds: dict[str, float] = {}

  @contextlib.contextmanager
  def __call__(self, phase: str) -> Iterator[None]:
    """Adds the time spent in the block to `phase`, also when the block raises."""
    start = time.perf_counter()
    try:
      yield
    finally:
      self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start


class Writer:
  """Scalars by step: `<workdir>/metrics/<name>.jsonl`, TensorBoard events, wandb if wanted."""

  def __init__(
    self,
    workdir: str | pathlib.Path,
    name: str,
    *,
    resume_step: int | None = None,
    tensorboard: bool = True,
    wandb: WandbConfig = WandbConfig(),  # noqa: B008  Frozen.
  ):
    """Opens the files for appending.

    Args:
      workdir: the run's folder.
      name: the stage, or one series of it.
      resume_step: the last step that is kept; rows of later steps, from the run that is being
        resumed, are removed. None keeps all.
      tensorboard: whether to write event files too; never into an object store, since they grow.
      wandb: the project that gets the rows too, if it names one.

    Raises:
      UserError: wandb is wanted and missing, or does not take the run.
    """
    self._series = WandbSeries(wandb, workdir, name) if wandb.project else None
    self.path = paths.as_path(workdir) / "metrics" / f"{name}.jsonl"
    self._rows = jsonl.json_lines(self.path)
    if resume_step is not None:
      self._rows.rewind(resume_step)
    self._events = None
    if tensorboard and not paths.is_remote(workdir):
      folder = pathlib.Path(workdir) / "tensorboard" / name
      self._events = _EventWriter(folder, resume_step=resume_step)

  def write(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Writes one row; the values are scalars, of Python, numpy or jax."""
    values = {name: float(value) for name, value in scalars.items()}
    self._rows.append([{"step": int(step), "time": round(time.time(), 3), **values}])
    if self._events:
      self._events.write(int(step), values)
    if self._series:
      self._series.write(int(step), values)

  def close(self) -> None:
    if self._events:
      self._events.close()
    if self._series:
      self._series.close()

  def __enter__(self) -> "Writer":
    return self

  def __exit__(self, *exc) -> None:
    self.close()


class Progress:
  """A bar with an ETA on a terminal; elsewhere a plain line every few seconds."""

  def __init__(
    self,
    total: int,
    label: str,
    *,
    done: int = 0,
    stream: TextIO | None = None,
    every_s: float = 15.0,
    after_s: float = 0.0,
  ):
    """Starts at `done` of `total`; the ETA counts only what is done from here on.

    Args:
      total: how many units there are.
      label: what they are part of.
      done: units of an earlier run.
      stream: where to, stderr by default.
      every_s: seconds between plain lines.
      after_s: what is done sooner than that is not shown.
    """
    self._total, self._label, self._done, self._first = total, label, done, done
    self._stream = stream or sys.stderr
    self._every_s = every_s
    self._start = self._last = time.monotonic()
    self._text = ""
    self._after_s = after_s
    self._bar: rich.progress.Progress | None = None
    self._is_terminal = self._stream.isatty()
    if self._is_terminal and not after_s:
      self._draw()

  def update(self, done: int, **fields: Any) -> None:
    """Says that `done` of the total are done, and shows `fields` such as reward=0.31 next to it."""
    self._done = done
    self._text = "  ".join(f"{k} {_short(v)}" for k, v in fields.items())
    if not self._is_due:
      return
    if self._is_terminal:
      (self._bar or self._draw()).update(self._task, completed=done, text=self._text)
    elif time.monotonic() - self._last >= self._every_s:
      self._line()

  def close(self) -> None:
    """Draws the last state."""
    if self._bar:
      self._bar.stop()
    elif self._is_due and not self._is_terminal:
      self._line()

  @property
  def _is_due(self) -> bool:
    return time.monotonic() - self._start >= self._after_s

  def _draw(self) -> rich.progress.Progress:
    self._bar = rich.progress.Progress(
      rich.progress.TextColumn("{task.description}"),
      rich.progress.BarColumn(),
      rich.progress.MofNCompleteColumn(),
      rich.progress.TimeRemainingColumn(elapsed_when_finished=True),
      rich.progress.TextColumn("{task.fields[text]}"),
      console=rich.console.Console(file=self._stream),
    )
    self._task = self._bar.add_task(self._label, total=self._total, completed=self._done, text="")
    self._bar.start()
    return self._bar

  def _line(self) -> None:
    self._last = time.monotonic()
    elapsed = self._last - self._start
    here = self._done - self._first
    eta = _clock(elapsed / here * (self._total - self._done)) if here else "?"
    when = f"in {_clock(elapsed)}" if self._done >= self._total else f"ETA {eta}"
    line = f"{self._label}  {self._done}/{self._total}  {when}  {self._text}"
    print(line.rstrip(), file=self._stream, flush=True)

  def __enter__(self) -> "Progress":
    return self

  def __exit__(self, *exc) -> None:
    self.close()


class _EventWriter:
  """TensorBoard's own event files, written without TensorFlow."""

  def __init__(self, folder: pathlib.Path, *, resume_step: int | None):
    self._writer = EventFileWriter(str(folder), flush_secs=10)
    if resume_step is not None:  # Tells the reader to drop what it has from this step on.
      start = SessionLog(status=SessionLog.START)
      self._add(resume_step + 1, session_log=start)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    rows = [Summary.Value(tag=k, simple_value=v) for k, v in values.items()]
    self._add(step, summary=Summary(value=rows))

  def close(self) -> None:
    self._writer.close()

  def _add(self, step: int, **what: Any) -> None:
    self._writer.add_event(Event(wall_time=time.time(), step=step, **what))


def _short(value: Any) -> str:
  return f"{value:.3g}" if isinstance(value, float) else str(value)


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
