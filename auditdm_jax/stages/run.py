# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: the one interface between the stages, which know nothing else of each other.

  manifest.json              how each stage ran and what it cost
  STAGE/done.json            the result of a finished stage, with the hash of its config
  auditors/train/UPDATES/    trained auditors
  records/train/             GRPO's completions, each an attempt
  discover/ control/         attempts of the sweep, and of the random questions
  heldout/ fresh/            attempts that all models answered, by batch
  verify/                    failures
  rectify/                   repaired targets, and the examples that each was trained on
  rounds/N/                  the same of a later round, see `stages.rounds`
  labels/                    finds that were drawn for people to label, and their labels
  minimised/                 what is left of single failures
  images/                    made images by the hash of their content, in 256 folders
  summary.json  seconds.json what was found so far, and how long stages took

All processes come by here in the same order (`core.runtime`), and the first one writes. They wait
for each other before they read, so that everything written is there, and after it, so that nothing
is written meanwhile.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
import contextlib
import contextvars
import dataclasses
import fcntl
import functools
import itertools
import os
import pathlib
import shutil
import tempfile
from typing import Any, TypeVar

from auditdm_jax.audit import labels as labels_lib
from auditdm_jax.audit.attempt import Attempt, Failure
from auditdm_jax.audit.labels import Label
from auditdm_jax.audit.minimise import Minimised
from auditdm_jax.audit.ranking import Ranked
from auditdm_jax.audit.sampling import Sampled
from auditdm_jax.audit.summary import Summary
from auditdm_jax.core import jsonio, jsonl, paths, records, runtime, typed
from auditdm_jax.core.config import UserError
from auditdm_jax.core.image_store import Images
from auditdm_jax.core.manifest import Manifest
from auditdm_jax.core.metrics import FLOPS
from auditdm_jax.core.records import Stored, chunks
from auditdm_jax.rectify.curate import TrainingExample

T = TypeVar("T")

ROUNDS = "rounds"
TRAIN = "train"  # The training of an auditor, of which a round has one.
VERIFY, BOOTSTRAP = "verify", "bootstrap"  # The stages that grade finds.
_COMPLETIONS, _ATTEMPTS, _FAILURES = "completions", "attempts", "failures"
_RANKED = "ranked"
_SAMPLE, _LABELS, _EXAMPLES = "sample", "labels", "examples"
_CHUNK = 512  # Rows that are made at once.


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
    self._written: dict[str, SharedRecords] = {}  # They know the keys that are there.

  # ------------------------------------------------------------------------- results of stages

  def done(self, stage: str, cls: type[T]) -> T | None:
    """Returns the result of a finished stage, or None.

    Raises:
      UserError: it was made with another config, or by a version that wrote something else.
    """
    path = self.path / stage / "done.json"
    record = read_json(path)
    if record is None:
      return None
    if record["config"] != self._hash:
      raise UserError(
        f"{path.parent} was made with another config; use another --workdir, or remove that folder"
      )
    return _loaded(cls, record["result"], path)

  def done_now(self, stage: str, cls: type[T]) -> T | None:
    """As `done`, of a stage that is done again for another config, since no other builds on it."""
    record = read_json(self.path / stage / "done.json")
    return self.done(stage, cls) if record and record["config"] == self._hash else None

  def finish(self, stage: str, result: T) -> T:
    """Marks a stage as done, atomically, with its result."""
    write_json(self.path / stage / "done.json", {"config": self._hash, "result": result})
    return result

  def borrow(
    self, other: str | os.PathLike, stages: Sequence[str], *, linked: Sequence[str] = ()
  ) -> None:
    """Takes over what stages of a run left, though its config differs in what comes after them.

    What is here already is left as it is. That a stage is finished is said anew, for this config.

    Args:
      other: the folder of the other run, on the same file system.
      stages: folders that are copied.
      linked: folders whose files never change.
    """
    for names, copy in ((linked, os.link), (stages, shutil.copy2)):
      for name in names:
        theirs, ours = pathlib.Path(other) / name, self.path / name
        if not theirs.is_dir() or ours.exists():
          continue
        with tempfile.TemporaryDirectory(dir=self.path, prefix=f"{name}.") as scratch:
          local = pathlib.Path(scratch, name)
          shutil.copytree(theirs, local, copy_function=copy)
          if (record := read_json(local / "done.json")) is not None:
            write_json(local / "done.json", record | {"config": self._hash})
          local.rename(ours)

  def summary(self) -> Summary | None:
    """Returns what the last report said, or None."""
    path = self.path / "summary.json"
    data = read_json(path)
    return None if data is None else _loaded(Summary, data, path)

  def write_summary(self, summary: Summary) -> None:
    write_json(self.path / "summary.json", summary)

  def seconds(self) -> dict[str, float]:
    """Returns the times of the stages that `loop` and `audit` ran; {} if there are none."""
    return read_json(self.path / "seconds.json") or {}

  def spent(self) -> Counter[str]:
    """Returns what the stages have cost so far, those of later rounds included, without seconds.

    It is by the manifests' names.
    """
    root, spent = self.path / ROUNDS, Counter[str]()
    rounds = [Manifest(folder) for folder in root.iterdir()] if root.exists() else []
    for manifest in (self.manifest, *rounds):
      for stage in manifest.read()["stages"].values():
        spent.update({k: v for k, v in stage.get("cost", {}).items() if k != "seconds"})
    return spent

  def add_seconds(self, stage: str, seconds: float) -> None:
    """Adds to the time of a stage."""
    clock = self.seconds()
    clock[stage] = round(clock.get(stage, 0.0) + seconds, 1)
    write_json(self.path / "seconds.json", clock)

  # --------------------------------------------------------------------------------- attempts

  # What follows is read anew each time somebody goes through it, row by row.

  def completions(self) -> Stored[Attempt]:
    """Returns every completion of training, except for invalid ones, which are no fault."""
    files = self.records(f"records/{TRAIN}")

    def rows() -> Iterator[Attempt]:
      for row in files.by_step(_COMPLETIONS, "prompt_id", "sample"):
        if not row["invalid"]:
          yield _picked(Attempt.from_dict(row), row.get("pick"))

    return Stored(rows)

  def training_flops(self) -> dict[str, float] | None:
    """Returns the work of training by phase; None if nothing was trained, or an older run."""
    path = self.path / "metrics" / f"{TRAIN}.jsonl"
    found: dict[str, float] = {}
    for _, row in jsonl.json_lines(path).iterate():
      for name in (name for name in row if name.startswith(FLOPS)):
        phase = name.removeprefix(FLOPS)
        found[phase] = found.get(phase, 0.0) + row[name]
    return found or None

  def sweep(self) -> Stored[tuple[int, list[Attempt]]]:
    """Returns discovery's batches by number."""
    return self.batches("discover")

  def append_sweep(self, ranked: Ranked, attempts: Sequence[Attempt]) -> None:
    """Appends a batch of discovery; what is there of it, cut short, is completed."""
    files = self._written.setdefault("discover", self.records("discover"))
    if ranked.batch not in files.keys(_RANKED, "batch"):
      files.append(_RANKED, [dataclasses.asdict(ranked)])
    self.append_batch("discover", ranked.batch, attempts)

  def ranked(self) -> list[Ranked]:
    """Returns what the batches of discovery were chosen from."""
    files = self.records("discover")
    return [typed.load(Ranked, row) for row in files.iterate(_RANKED)]

  def batches(self, name: str) -> Stored[tuple[int, list[Attempt]]]:
    """Returns attempts by batch in their order; the last one, if cut short, is left out."""
    files = self.records(name)

    def whole() -> Iterator[tuple[int, list[Attempt]]]:
      found: list[Attempt] = []
      for row in files.iterate(_ATTEMPTS):
        found.append(Attempt.from_dict(row))
        if row.get("last"):
          yield row["batch"], found
          found = []

    return Stored(whole)

  def append_batch(self, name: str, batch: int, attempts: Sequence[Attempt]) -> None:
    """Appends a batch of attempts; what is there of it, cut short, is completed."""
    files = self._written.setdefault(name, self.records(name))
    known = files.keys(_ATTEMPTS, "key")
    rows: list[dict[str, Any]] = [
      {"batch": batch, "key": f"{batch}/{i}", **a.to_dict()} for i, a in enumerate(attempts)
    ]
    if not rows:  # It is asked again on resume, for the same nothing.
      return
    rows[-1]["last"] = True
    files.append(_ATTEMPTS, [r for r in rows if r["key"] not in known])

  def attempts(self) -> Stored[Attempt]:
    """Returns every attempted probe: GRPO's completions, then discovery's."""
    parts = self.completions(), self.swept()
    return Stored(lambda: itertools.chain.from_iterable(parts))

  def asked(self) -> Stored[Attempt]:
    """Returns every attempted probe, and the random questions of the control."""
    parts = self.attempts(), self.control()
    return Stored(lambda: itertools.chain.from_iterable(parts))

  def swept(self) -> Stored[Attempt]:
    """Returns the attempts of discovery."""
    batches = self.sweep()
    return Stored(lambda: (a for _, attempts in batches for a in attempts))

  def control(self) -> Stored[Attempt]:
    """Returns the random questions that were asked at the audit's queries."""
    files = self.records("control")
    return Stored(lambda: map(Attempt.from_dict, files.iterate(_ATTEMPTS)))

  def write_control(self, attempts: Sequence[Attempt]) -> None:
    """Writes them all, instead of what is there."""
    files = self.records("control")
    files.rewind(_ATTEMPTS, -1, field="row")
    for chunk in chunks(enumerate(attempts), _CHUNK):
      files.append(_ATTEMPTS, [{"row": i, **a.to_dict()} for i, a in chunk])

  def failures(self) -> Stored[Failure]:
    """Returns the graded finds, with what people said of them since."""
    return self.failures_of(VERIFY)

  def failures_of(self, stage: str) -> Stored[Failure]:
    """The same of any stage that grades finds."""
    return Stored(lambda: labels_lib.apply(self.graded(stage), self.labels()))

  def graded(self, name: str = VERIFY) -> Stored[Failure]:
    """Returns the finds of a stage as verification graded them."""
    files = self.records(name)
    return Stored(lambda: map(Failure.from_dict, files.iterate(_FAILURES)))

  def append_failures(self, failures: Sequence[Failure], *, name: str = VERIFY) -> None:
    """Appends those of a stage that are not there yet."""
    files = self.records(name)
    known = files.keys(_FAILURES, "key")
    new = (f for f in failures if f.probe.probe_id not in known)
    for chunk in chunks(new, _CHUNK):
      files.append(_FAILURES, [{"key": f.probe.probe_id, **f.to_dict()} for f in chunk])

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

  def examples(self, name: str) -> list[TrainingExample]:
    """Returns what a repaired target was trained on."""
    rows = self.records("rectify").iterate(_EXAMPLES)
    return [typed.load(TrainingExample, row["example"]) for row in rows if row["model"] == name]

  def append_examples(self, name: str, examples: Sequence[TrainingExample]) -> None:
    """Appends those that are not there yet."""
    files = self.records("rectify")
    known = files.keys(_EXAMPLES, "key")
    for chunk in chunks(enumerate(examples), _CHUNK):
      rows = [
        {"key": f"{name}/{i}", "model": name, "example": dataclasses.asdict(e)} for i, e in chunk
      ]
      files.append(_EXAMPLES, [row for row in rows if row["key"] not in known])

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
    return Images(self.path / "images", fan_out=True)

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
    with open(self.path / ".lock", "a+") as lock:
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as e:
        lock.seek(0)
        number = lock.read(20).strip()
        which = f" (process {number} of this machine)" if number.isdecimal() else ""
        raise UserError(f"{self.path}: another process is at work there{which}") from e
      except OSError:  # Some network file systems have no locks.
        pass
      lock.truncate(0)
      lock.write(f"{os.getpid()}\n")
      lock.flush()
      yield


_ALONE = contextvars.ContextVar("alone", default=False)


@contextlib.contextmanager
def reading() -> Iterator[None]:
  """The block sees the same files in every process; all of them enter it, but for `first_only`."""
  if _ALONE.get():
    yield
    return
  runtime.barrier()
  yield
  runtime.barrier()


@contextlib.contextmanager
def first_only() -> Iterator[bool]:
  """Whether this is the first process, which may read in the block while no other one does."""
  runtime.barrier()  # What the others wrote is there.
  token = _ALONE.set(True)
  try:
    yield runtime.is_main()
  finally:
    _ALONE.reset(token)


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

  def iterate(self, name: str) -> Iterator[dict[str, Any]]:
    with reading():
      yield from super().iterate(name)

  def by_step(self, name: str, *then: str) -> Iterator[dict[str, Any]]:
    with reading():
      yield from super().by_step(name, *then)

  def keys(self, name: str, *fields: str) -> set:
    with reading():
      return super().keys(name, *fields)

  def rewind(self, name: str, step: int, *, field: str = "step") -> int:
    return super().rewind(name, step, field=field) if runtime.is_main() else 0


def _picked(attempt: Attempt, pick: Mapping[str, Any] | None) -> Attempt:
  """Adds to an attempt of training how it was picked, in the sweep's words."""
  if pick is None:
    return attempt
  way = "lot" if pick["by_lot"] else "rank"
  probe = dataclasses.replace(attempt.probe, way=way, score=pick["predicted"])
  return dataclasses.replace(attempt, probe=probe)


def _loaded(cls: type[T], data: Any, path: pathlib.Path) -> T:
  """Returns a result as its class.

  Raises:
    UserError: it is not what the class holds.
  """
  try:
    return typed.load(cls, data)
  except (AttributeError, IndexError, KeyError, TypeError, ValueError) as e:
    raise UserError(
      f"{path}: not what this version writes ({e}); manifest.json has the commit that wrote it. Use"
      " that one, another --workdir, or remove the file so that its stage is done again"
    ) from e
