# SPDX-License-Identifier: Apache-2.0
"""What an audit costs beside its models: CPU and memory of each stage over many probes.

  python -m benchmarks.scale [--probes=100000] [--read=1000000]

Models that answer at once stand in for real ones. The probes of a sweep are written to a run's
folder; then the stages verify (gates, trials, modes, fresh rates) and report run as they are. Every
fifth probe is a find, and all finds are verified. With `--read`, as many rows are written and read
once more, which should need no memory.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import pathlib
import resource
import tempfile
import time
import types
from typing import Any, ClassVar, cast

from absl import app, flags
import numpy as np

from auditdm_jax.audit.answer import ModelBank
from auditdm_jax.audit.attempt import Attempt
from auditdm_jax.audit.judge import Judge
from auditdm_jax.audit.looks import Gallery
from auditdm_jax.audit.probe import Probe, Verdict
from auditdm_jax.audit.ranking import Ranked
from auditdm_jax.audit.skills import load_seeds
from auditdm_jax.core import records, streams
from auditdm_jax.core.config import build
from auditdm_jax.core.image_store import Images
from auditdm_jax.stages import report, sections, verify
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.results import Discovered
from auditdm_jax.stages.rounds import AuditRound
from auditdm_jax.stages.run import RunFolder
from auditdm_jax.stages.truth import Oracle
from auditdm_jax.stages.worlds import World
from auditdm_jax.text.styles import PLAIN, RawReply, Style
from configs import scenes

ROOT = pathlib.Path(__file__).parents[1]
PER_IMAGE = 5  # Questions about each image.
FRESH = 4_000  # Questions about other images.
BATCH = 1_000
NOUNS = tuple(a + b for a in ("ba", "co", "di", "fu", "ka", "lo", "mi") for b in "rtnlsk")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "brown", "white")
PLACES = tuple(
  f"{a}{b}" for a in ("north", "south", "old", "new", "wide") for b in ("wall", "road")
)
UNKNOWN = NOUNS[::5]  # What the target gets wrong.

_PROBES = flags.DEFINE_integer("probes", 100_000, "Probes of the audit.")
_READ = flags.DEFINE_integer("read", 0, "Rows that are written and read; 0 = none.")


@dataclasses.dataclass
class Quick:
  """A model that answers by a rule at once; features are mean and spread of the image."""

  wrong: bool
  tower_id: str = "quick"
  style: Style = PLAIN
  takes: ClassVar[str] = "features"

  def encode(self, images: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([[[image.mean(), image.std()]] for image in images], np.float32)

  def reply_features(
    self,
    features: np.ndarray,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    which: Sequence[Sequence[int]],
  ) -> list[RawReply]:
    spread = features[np.ravel(which), 0, 1]
    return [RawReply(self.say(q) if s else "grey", "stop") for q, s in zip(prompts, spread)]

  def say(self, question: str) -> str:
    right = sum(map(ord, question)) % len(COLOURS)
    fails = self.wrong and any(noun in question.split() for noun in UNKNOWN)
    return COLOURS[(right + fails) % len(COLOURS)]


class DrawnPictures:
  """Small images by id, drawn when they are asked for."""

  def __init__(self, folder: RunFolder):
    self.made = folder.images
    self._drawn: dict[str, tuple[str, int]] = {}

  def add(self, split: str, i: int) -> str:
    """Returns the id of an image, by which it is found from then on."""
    image_id = Images.id_of(self._draw(split, i))
    self._drawn[image_id] = split, i
    return image_id

  def __call__(self, image_id: str) -> np.ndarray:
    return self._draw(*self._drawn[image_id])

  def _draw(self, split: str, i: int) -> np.ndarray:
    return streams.rng(0, "picture", split, i).integers(0, 255, (24, 24, 3), np.uint8)


class MadeQuestions:
  """A pool without labels: `PER_IMAGE` questions about each image."""

  def __init__(self, split: str, images: int, pictures: DrawnPictures):
    self.split = split
    self._ids = [pictures.add(split, i) for i in range(images)]

  def __len__(self) -> int:
    return len(self._ids)

  def image_id(self, i: int) -> str:
    return self._ids[i]

  def questions(self, i: int) -> tuple[str, ...]:
    rng = streams.rng(0, "questions", self.split, i)
    rows = rng.integers((len(NOUNS), len(PLACES), 500), size=(PER_IMAGE, 3))
    return tuple(f"what color is the {NOUNS[n]} near {PLACES[p]} {x}" for n, p, x in rows)

  def answers(self, i: int) -> tuple[tuple[str, ...], ...]:
    return ((),) * PER_IMAGE

  def asked(self) -> list[tuple[int, str]]:
    return [(i, q) for i in range(len(self)) for q in self.questions(i)]


TARGET, REFERENCES = Quick(wrong=True), {"first": Quick(wrong=False), "second": Quick(wrong=False)}


class QuickRun:
  """What the stages verify and report read of a context."""

  def __init__(self, path: pathlib.Path, probes: int):
    config = scenes.get_config()
    config.verify.limit, config.optim.steps = probes, 0
    config.verify.paraphrases = 0
    self.settings = build(sections.AuditConfig, config, name="config")
    self.folder, self.round = RunFolder(path, config_hash=""), AuditRound.of(path)
    self.images, self.world, self.judge = DrawnPictures(self.folder), World(), Judge()
    self.oracle = Oracle(self.world, images=self.images, judge=self.judge)
    self.seeds = load_seeds(self.settings.taxonomy.skills)
    self.gallery = Gallery(self.images, config=self.settings.taxonomy.looks)
    self._pools = {
      "images": MadeQuestions("images", probes // PER_IMAGE, self.images),
      "fresh": MadeQuestions("fresh", FRESH // PER_IMAGE, self.images),
      "heldout": MadeQuestions("heldout", 1, self.images),
    }
    bank = ModelBank({"target": TARGET, **REFERENCES}, "target", tuple(REFERENCES))
    self.models = types.SimpleNamespace(
      bank=lambda: bank,
      config=types.SimpleNamespace(target="target"),
      target_name="target",
      sibling_name="",
      references=REFERENCES,
      target_is_remote=False,
    )

  def pool(self, role: str) -> MadeQuestions:
    return self._pools[role]

  def later(self) -> dict[int, RunFolder]:
    return {}

  def spent(self) -> dict[str, float]:
    return {}

  def attempts(self) -> Iterator[Attempt]:
    """What a sweep of the pool would have found."""
    pool = self.pool("images")
    for i in range(len(pool)):
      for question in pool.questions(i):
        probe = Probe.make(pool.image_id(i), question, arm="random", source=f"images/{i}")
        said, right = TARGET.say(question), REFERENCES["first"].say(question)
        yield Attempt(
          probe=probe,
          verdict=Verdict(
            probe_id=probe.probe_id,
            answers={"target": said, "first": right, "second": right},
            target="target",
            references=tuple(REFERENCES),
            consensus=right,
            agree=True,
            disagreement=said != right,
            reason="agreement" if said == right else "disagreement",
          ),
        )


def measured(name: str, body: Callable[[], Any]) -> Any:
  """Runs a stage and prints what it cost, and the peak of the memory up to its end."""
  start = time.process_time()
  result = body()
  seconds = time.process_time() - start
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  print(f"{name:24} {seconds:8.1f} CPU s   peak {peak:7.0f} MiB", flush=True)
  return result


def write(run: QuickRun, attempts: Iterator[Attempt]) -> int:
  """Writes them as a sweep; returns how many finds they hold."""
  finds = 0
  for batch, rows in enumerate(records.chunks(attempts, BATCH)):
    ranked = Ranked(batch, {"random": len(rows)}, len(rows), len(rows) // PER_IMAGE, 0, flops={})
    run.folder.append_sweep(ranked, rows)
    finds += sum(a.find is not None for a in rows)
  run.folder.finish("discover", Discovered({}, batch))
  return finds


def audit(folder: pathlib.Path, probes: int) -> None:
  """Measures the stages of an audit."""
  run = QuickRun(folder, probes)
  ctx = cast(Context, run)
  finds = measured("write", lambda: write(run, run.attempts()))
  print(f"{probes} probes, {finds} finds")
  found = measured("verify", lambda: verify.run(ctx))
  print(f"{len(found.modes)} modes; {found.funnel}")
  measured("report", lambda: report.run(ctx))
  pages = [p.stat().st_size for p in (folder / "report").rglob("*") if p.is_file()]
  print(
    f"report: {len(pages)} files, {sum(pages) / 2**20:.1f} MiB, largest {max(pages) / 2**20:.1f}"
  )


def read(folder: pathlib.Path, rows: int) -> None:
  """Measures writing and reading."""
  run = QuickRun(folder, rows)
  measured("write", lambda: write(run, run.attempts()))
  n = measured("read", lambda: sum(1 for _ in run.folder.attempts()))
  print(f"{n} rows read")


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  measured("start", lambda: None)
  with tempfile.TemporaryDirectory() as folder, contextlib.chdir(ROOT):
    if _READ.value:
      read(pathlib.Path(folder), _READ.value)
    else:
      audit(pathlib.Path(folder), _PROBES.value)


if __name__ == "__main__":
  app.run(main)
