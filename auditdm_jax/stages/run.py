# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: the one interface between the stages, which know nothing else of each other.

  manifest.json              how each stage ran and what it cost
  STAGE/done.json            the result of a finished stage, with the hash of its config
  auditors/train/UPDATES/    trained auditors
  records/train/             GRPO's completions, each an attempt
  discover/ control/         attempts of the sweep, and of the random questions
  heldout/ fresh/ fresh-round2/  attempts that all models answered, by batch
  verify/                    failures
  labels/                    finds that were drawn for people to label, and their labels
  minimised/                 what is left of single failures
  images/                    made images by the hash of their content
  summary.json  seconds.json what was found so far, and how long stages took

All processes come by here in the same order (`core.runtime`), and the first one writes. They wait
for each other before they read, so that everything written is there, and after it, so that nothing
is written meanwhile.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import fcntl
import functools
import os
import pathlib
from typing import Any, TypeVar

from auditdm_jax.audit import labels as labels_lib
from auditdm_jax.audit.attempt import Attempt, Failure
from auditdm_jax.audit.labels import Label
from auditdm_jax.audit.minimise import Minimised
from auditdm_jax.audit.sampling import Sampled
from auditdm_jax.audit.summary import Summary
from auditdm_jax.core import jsonio, paths, records, runtime, typed
from auditdm_jax.core.config import UserError
from auditdm_jax.core.image_store import Images
from auditdm_jax.core.manifest import Manifest

T = TypeVar("T")

TRAIN = "train"  # The training run of the first round.
_COMPLETIONS, _ATTEMPTS, _FAILURES = "completions", "attempts", "failures"
_SAMPLE, _LABELS = "sample", "labels"


class RunFolder:
  """A run's files. A stage's result is a dataclass, and is read as one."""

  def __init__(self, path: str | os.PathLike, *, config_hash: str):
    """Opens the folder, which is made if it is not there.

    Args:
      path: the workdir, which may be in an object store.
      config_hash: the config's; results that were made with another one are refused.
    """
    self.path: pathlib.Path = paths.as_path(path)
    self.path.mkdir(parents=True, exist_ok=True)
    self._hash = config_hash

  # ------------------------------------------------------------------------- results of stages

  def done(self, stage: str, cls: type[T]) -> T | None:
    """Returns the result of a finished stage, or None.

    Raises:
      UserError: it was made with another config.
    """
    path = self.path / stage / "done.json"
    record = read_json(path)
    if record is None:
      return None
    if record["config"] != self._hash:
      raise UserError(
        f"{path.parent} was made with another config; use another --workdir, or remove that folder"
      )
    return typed.load(cls, record["result"])

  def done_now(self, stage: str, cls: type[T]) -> T | None:
    """As `done`, of a stage that is done again for another config, since no other builds on it."""
    record = read_json(self.path / stage / "done.json")
    return self.done(stage, cls) if record and record["config"] == self._hash else None

  def finish(self, stage: str, result: T) -> T:
    """Marks a stage as done, atomically, with its result."""
    write_json(self.path / stage / "done.json", {"config": self._hash, "result": result})
    return result

  def summary(self) -> Summary | None:
    """Returns what the last report said, or None."""
    data = read_json(self.path / "summary.json")
    return None if data is None else typed.load(Summary, data)

  def write_summary(self, summary: Summary) -> None:
    write_json(self.path / "summary.json", summary)

  def seconds(self) -> dict[str, float]:
    """Returns the times of the stages that `loop` and `audit` ran; {} if there are none."""
    return read_json(self.path / "seconds.json") or {}

  def add_seconds(self, stage: str, seconds: float) -> None:
    """Adds to the time of a stage."""
    clock = self.seconds()
    clock[stage] = round(clock.get(stage, 0.0) + seconds, 1)
    write_json(self.path / "seconds.json", clock)

  # --------------------------------------------------------------------------------- attempts

  def completions(self, run: str = TRAIN) -> list[Attempt]:
    """Returns every completion of a training run, except for invalid ones, which are no fault."""
    rows = self.records(f"records/{run}").read(_COMPLETIONS)
    # Shard by shard; each is in this order.
    rows.sort(key=lambda r: (r["step"], r["prompt_id"], r["sample"]))
    return [Attempt.from_dict(r) for r in rows if not r["invalid"]]

  def sweep(self) -> dict[int, list[Attempt]]:
    """Returns the attempts of discovery by batch; a batch that was cut short is left out."""
    return self.batches("discover")

  def append_sweep(self, batch: int, attempts: Sequence[Attempt]) -> None:
    """Appends a batch of discovery; what is there of it, cut short, is completed."""
    self.append_batch("discover", batch, attempts)

  def batches(self, name: str) -> dict[int, list[Attempt]]:
    """Returns attempts by batch; a batch that was cut short is left out."""
    found: dict[int, list[Attempt]] = {}
    whole: set[int] = set()
    for row in self.records(name).read(_ATTEMPTS):
      found.setdefault(row["batch"], []).append(Attempt.from_dict(row))
      if row.get("last"):
        whole.add(row["batch"])
    return {batch: attempts for batch, attempts in found.items() if batch in whole}

  def append_batch(self, name: str, batch: int, attempts: Sequence[Attempt]) -> None:
    """Appends a batch of attempts; what is there of it, cut short, is completed."""
    known = self.records(name).keys(_ATTEMPTS, "key")
    rows: list[dict[str, Any]] = [
      {"batch": batch, "key": f"{batch}/{i}", **a.to_dict()} for i, a in enumerate(attempts)
    ]
    if not rows:  # It is asked again on resume, for the same nothing.
      return
    rows[-1]["last"] = True
    self.records(name).append(_ATTEMPTS, [r for r in rows if r["key"] not in known])

  def attempts(self) -> list[Attempt]:
    """Returns every attempted probe: GRPO's completions, then discovery's."""
    swept = self.sweep()
    return [*self.completions(), *(a for batch in sorted(swept) for a in swept[batch])]

  def control(self) -> list[Attempt]:
    """Returns the random questions that were asked at the audit's queries."""
    return [Attempt.from_dict(r) for r in self.records("control").read(_ATTEMPTS)]

  def write_control(self, attempts: Sequence[Attempt]) -> None:
    """Writes them all, instead of what is there."""
    files = self.records("control")
    files.rewind(_ATTEMPTS, -1, field="row")
    files.append(_ATTEMPTS, [{"row": i, **a.to_dict()} for i, a in enumerate(attempts)])

  def failures(self) -> list[Failure]:
    """Returns the graded finds, with what people said of them since."""
    return labels_lib.apply(self.graded(), self.labels())

  def graded(self) -> list[Failure]:
    """Returns the finds as verification graded them."""
    return [Failure.from_dict(r) for r in self.records("verify").read(_FAILURES)]

  def append_failures(self, failures: Sequence[Failure]) -> None:
    """Appends those that are not there yet."""
    files = self.records("verify")
    known = files.keys(_FAILURES, "key")
    rows = [{"key": f.probe.probe_id, **f.to_dict()} for f in failures]
    files.append(_FAILURES, [r for r in rows if r["key"] not in known])

  def sample(self) -> list[Sampled]:
    """Returns the finds that were drawn for people to label."""
    return [Sampled.from_dict(r) for r in self._labels(_SAMPLE)]

  def append_sample(self, rows: Sequence[Sampled]) -> None:
    self.records("labels").append(_SAMPLE, [row.to_dict() for row in rows])

  def labels(self) -> list[Label]:
    """Returns what people said of them; the last one of a rater and a find counts."""
    return labels_lib.latest(Label.from_dict(r) for r in self._labels(_LABELS))

  def append_labels(self, labels: Sequence[Label]) -> None:
    """Appends those that say something new."""
    known = set(self.labels())
    self.records("labels").append(_LABELS, [x.to_dict() for x in labels if x not in known])

  def _labels(self, name: str) -> list[dict[str, Any]]:
    """Rows about labels; most runs have none, and no folder for them."""
    return self.records("labels").read(name) if (self.path / "labels").exists() else []

  def minimised(self, probe_id: str) -> Minimised | None:
    """Returns what is left of a failure, if that was looked for."""
    data = read_json(self._minimised(probe_id))
    return None if data is None else typed.load(Minimised, data)

  def write_minimised(self, result: Minimised) -> None:
    write_json(self._minimised(result.probe_id), result)

  def _minimised(self, probe_id: str) -> pathlib.Path:
    return self.path / "minimised" / f"{probe_id}.json"

  def records(self, name: str) -> "SharedRecords":
    """Returns the records in a folder of the run."""
    return SharedRecords(self.path / name)

  # ------------------------------------------------------------------------ models and the rest

  def auditors(self) -> dict[int, pathlib.Path]:
    """Returns the trained auditors by their number of updates.

    Raises:
      UserError: there are none.
    """
    root = self.path / "auditors" / TRAIN
    found = {int(p.name): p for p in sorted(root.glob("*")) if (p / "config.json").exists()}
    if not found:
      raise UserError(f"{root}: no trained auditor; run the stage train first")
    return found

  def repaired(self, name: str = "repaired") -> pathlib.Path:
    """Returns where a repaired target is or will be."""
    return self.path / "rectify" / name

  @functools.cached_property
  def images(self) -> Images:
    """The made images."""
    return Images(self.path / "images")

  @functools.cached_property
  def manifest(self) -> Manifest:
    return Manifest(self.path)

  @contextlib.contextmanager
  def locked(self) -> Iterator[None]:
    """Within the block nobody else on this machine writes here.

    Raises:
      UserError: somebody does.
    """
    if paths.is_remote(self.path):
      yield
      return
    with open(self.path / ".lock", "w") as lock:
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as e:
        raise UserError(f"{self.path}: another process is at work there") from e
      except OSError:  # Some network file systems have no locks.
        pass
      yield


@contextlib.contextmanager
def reading() -> Iterator[None]:
  """The block sees the same files in every process."""
  runtime.barrier()
  yield
  runtime.barrier()


def read_json(path: str | os.PathLike) -> Any:
  """Returns what a file holds, or None if there is none."""
  with reading():
    return jsonio.read_json(path) if paths.as_path(path).exists() else None


def write_json(path: str | os.PathLike, value: Any) -> None:
  """As `jsonio.write_json`, by the first process."""
  if runtime.is_main():
    jsonio.write_json(path, value)


class SharedRecords(records.Records):
  """Records in one shard; those of GRPO, of which each process writes its share, can be read."""

  def append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    if runtime.is_main():
      super().append(name, rows)

  def read(self, name: str) -> list[dict[str, Any]]:
    with reading():
      return super().read(name)

  def keys(self, name: str, *fields: str) -> set:
    with reading():
      return super().keys(name, *fields)

  def rewind(self, name: str, step: int, *, field: str = "step") -> int:
    return super().rewind(name, step, field=field) if runtime.is_main() else 0
