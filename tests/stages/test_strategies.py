# SPDX-License-Identifier: Apache-2.0
"""What a repair is trained on: shares of sources, alike controls, and how many labels are right."""

from collections import Counter
import types

import numpy as np
import pytest

from auditdm_jax.audit.attempt import Attempt, Failure, Opinion, Stability
from auditdm_jax.audit.judge import Judge
from auditdm_jax.audit.looks import Gallery, LooksConfig
from auditdm_jax.audit.probe import Probe, Verdict
from auditdm_jax.audit.skills import Seeds
from auditdm_jax.audit.taxonomy import TaxonomyConfig
from auditdm_jax.audit.verdict import UNANIMOUS
from auditdm_jax.core.config import UserError
from auditdm_jax.rectify import curate
from auditdm_jax.rectify.curate import TrainingExample
from auditdm_jax.rectify.strategy import ConfidenceConfig, StrategyConfig
from auditdm_jax.stages import bootstrap, evaluate, labelled, rectify, sources
from auditdm_jax.stages.examples import by_strategy, from_failures
from auditdm_jax.stages.pools import ImageSource
from auditdm_jax.stages.results import Bootstrapped
from auditdm_jax.stages.rounds import AuditRound
from auditdm_jax.stages.run import BOOTSTRAP, RunFolder
from auditdm_jax.stages.sections import LabelledConfig, RectifyConfig, UnlabelledConfig
from tests.bench.layouts import fakes


class Pool:
  """Sixty images; the data set answers "red" to the first question about each, in two ways."""

  split = "pool"

  def __len__(self):
    return 60

  def image_id(self, i):
    return f"p{i}"

  def questions(self, i):
    return (f"what color is thing {i % 5}", "what is it made of")

  def answers(self, i):
    return (("red", "blue", "red"), ())


def _attempt(i, *, consensus="red", said="blue", arm="audit"):
  probe = Probe.make(f"p{i}", f"what color is thing {i % 5}", arm=arm)
  verdict = Verdict(
    probe_id=probe.probe_id,
    answers={"t": said, "r": consensus, "s": consensus},
    target="t",
    references=("r", "s"),
    consensus=consensus,
    agree=True,
    disagreement=said != consensus,
    reason="disagreement" if said != consensus else "agreement",
  )
  return Attempt(probe=probe, verdict=verdict)


def _failure(i, **learned):
  fields = dict(grade="V1", stability=Stability(k=5, n=5), mode_id=f"m{i % 4}") | learned
  arm = fields.pop("arm", "audit")
  return Failure.of(_attempt(i, arm=arm).find, **fields)


def _context(path, *, size=24, truth=None, **rectify_section):
  """A run whose audit has thirty verified failures, and whose control asked sixty questions."""
  folder = RunFolder(path, config_hash="x")
  folder.append_failures([_failure(i) for i in range(30)])
  folder.append_failures([_failure(99, grade="V0")])
  folder.append_failures([_failure(i, arm="bootstrap@2") for i in range(30, 60)], name=BOOTSTRAP)
  (path / "verify").mkdir(exist_ok=True)
  folder.finish("verify", {"funnel": {}, "taxonomy": {"modes": []}, "modes": []})
  folder.finish(BOOTSTRAP, Bootstrapped(100, 30, 30))
  folder.write_control([_attempt(i, said="blue" if i % 2 else "red", arm="c") for i in range(60)])
  config = curate.Config(size=size, cap=1.0)
  oracle = types.SimpleNamespace(exists=truth is not None, answer=truth)
  asked = types.SimpleNamespace
  pool = Pool()
  opened = _Pools(pool)
  return asked(
    folder=folder,
    judge=Judge(),
    oracle=oracle,
    pool=opened,
    seeds=Seeds(()),
    gallery=Gallery({}.__getitem__, config=LooksConfig(limit=0)),
    images=ImageSource(folder.images, cache_bytes=1 << 20),
    round=AuditRound(1, path),
    settings=asked(
      seed=0,
      rectify=RectifyConfig(recipe=None, length=9, suffix=3, curate=config, **rectify_section),
      bank=asked(rule=UNANIMOUS),
      pool=asked(images="pool", cache_bytes=1 << 20),
      taxonomy=asked(modes=TaxonomyConfig()),
      optim=asked(steps=4),
    ),
  )


class _Pools:
  def __init__(self, pool):
    self._pool = pool

  def __call__(self, role):
    return self._pool

  def other(self, dataset, split):
    return self._pool


def _arms(examples):
  return Counter(e.source.partition("@")[0] for e in examples)


@pytest.fixture
def verified(monkeypatch):
  """`done` of the stage verify, without a taxonomy on disk."""
  done = RunFolder.done
  monkeypatch.setattr(
    RunFolder, "done", lambda self, name, cls: True if name == "verify" else done(self, name, cls)
  )


def test_shares_of_the_sources(tmp_path, verified):
  ctx = _context(tmp_path)
  assert _arms(from_failures(ctx)) == {"audit": 24}
  both = StrategyConfig(probes=0.25, labelled=0.5, bootstrapped=0.25)
  found = by_strategy(ctx, both)
  assert {name: len(part) for name, part in found.examples.items()} == {
    "labelled": 12,
    "probes": 6,
    "bootstrapped": 6,
  }
  assert _arms(found.all) == {"labels": 12, "audit": 6, "bootstrap": 6}
  assert all(e.label == "red" and "color" in e.question for e in found.examples["labelled"])
  assert max(Counter(e.group for e in found.examples["probes"]).values()) == 2, "modes take turns"


def test_controls_have_the_same_labelled_questions_and_random_ones_for_failures(tmp_path, verified):
  ctx = _context(tmp_path)
  repaired = by_strategy(ctx, StrategyConfig(probes=0.5, labelled=0.5))
  found = rectify.controls(ctx, repaired)
  assert set(found) == {"control_random", "control_mined"}
  for control in found.values():
    assert control.examples["labelled"] == repaired.examples["labelled"]
    assert len(control.examples["random"]) == 12
    assert _arms(control.examples["random"]) == {"c": 12}
  asked = {a.probe.probe_id: a for a in ctx.folder.control()}
  of = lambda e: asked[e.provenance["probe_id"]]  # noqa: E731
  assert all(of(e).find for e in found["control_mined"].examples["random"])
  assert not all(of(e).find for e in found["control_random"].examples["random"])


def test_mined_failures_are_taken_evenly_over_modes_of_their_own(tmp_path, verified, monkeypatch):
  """Forty failures of one mode and four of another, found among the control's questions alone."""
  given = []

  class Modes:
    def match_attempts(self, finds, gallery):
      return [types.SimpleNamespace(mode_id="rare" if f.consensus == "red" else "") for f in finds]

  def discover(attempts, *args, **options):
    given.extend(attempts)
    return Modes()

  monkeypatch.setattr(rectify.taxonomy, "discover_modes", discover)
  random = [_attempt(i, consensus="red" if i < 4 else "green", arm="c") for i in range(44)]
  found = rectify.mined_examples(_context(tmp_path), random, 8)
  assert Counter(e.label for e in found) == {"red": 4, "green": 4}
  assert {a.probe.arm for a in given} == {"c"}


def test_an_oracle_does_not_choose_what_is_trained_on(tmp_path, verified):
  ctx = _context(tmp_path)
  by = Opinion(by="oracle", side="consensus", answer="red")
  ctx.folder.append_failures([_failure(i, grade="V2", opinion=by) for i in range(100, 104)])
  by = Opinion(by="model m", side="consensus", answer="red")
  ctx.folder.append_failures([_failure(i, grade="V2", opinion=by) for i in range(110, 113)])
  sure = StrategyConfig(confidence=ConfidenceConfig(grade="V2"))
  found = by_strategy(ctx, sure)
  assert {e.image_id for e in found.all} == {"p110", "p111", "p112"}
  assert found.left_out == {"below V2": 34}


def test_a_source_that_was_not_made_is_one_line(tmp_path, verified):
  ctx = _context(tmp_path)
  (tmp_path / "bootstrap/done.json").unlink()
  with pytest.raises(UserError, match="run the stage bootstrap first"):
    by_strategy(ctx, StrategyConfig(probes=0.0, bootstrapped=1.0))


def test_names_of_further_models():
  with pytest.raises(UserError, match="config.rectify.beside: 'repaired' names no model"):
    RectifyConfig(recipe=None, length=1, suffix=1, beside={"repaired": StrategyConfig()})
  with pytest.raises(UserError, match="'../x' names no model"):
    RectifyConfig(recipe=None, length=1, suffix=1, beside={"../x": StrategyConfig()})


# --------------------------------------------------------------------------- a benchmark's train


def _docvqa(root):
  rows = []
  for k in range(6):
    fakes.write_picture(root / f"train/documents/d{k}.png", 40 * k)
    rows.append({"questionId": k, "question": f"what is {k}?", "image": f"documents/d{k}.png"})
    rows[-1] |= {"question_types": ["form"], "answers": ["a", "b", "b"], "docId": 5}
  fakes.write_json(root / "train_v1.0_withQT.json", {"dataset_split": "train", "data": rows})


def test_a_benchmarks_train_split_is_put_as_its_transfers_do(tmp_path):
  _docvqa(tmp_path / "docvqa")
  section = LabelledConfig(dataset=str(tmp_path / "docvqa"), split="train", benchmark="docvqa")
  ctx = _context(tmp_path / "run", labelled=section)
  examples = sources.labelled_examples(ctx, 4)
  assert len(examples) == 4 and all(e.is_prompt and e.label == "b" for e in examples)
  for e in examples:
    k = int(e.question.removeprefix("what is ").rstrip("?"))
    assert fakes.shown(ctx.images(e.image_id)) == 40 * k, "its own picture is found by id"
    assert e.provenance["licence"] and e.provenance["item"] == str(k)


@pytest.mark.parametrize("split", ["val", ""])
def test_nothing_is_trained_on_the_split_that_is_measured(tmp_path, split):
  section = LabelledConfig(dataset="x", split=split, benchmark="docvqa")
  ctx = _context(tmp_path, labelled=section)
  with pytest.raises(UserError, match="docvqa is measured on val.*train"):
    sources.labelled_examples(ctx, 4)


# ------------------------------------------------------------------------------ right labels


def _example(i, label, *, source="audit@1", origin="", **provenance):
  return TrainingExample(
    image_id=f"p{i}",
    question=f"what color is thing {i % 5}",
    label=label,
    source=source,
    origin_id=origin or f"p{i}",
    provenance=provenance,
  )


def test_labels_are_held_to_the_oracle_and_to_the_data_set(tmp_path):
  ctx = _context(tmp_path, truth=lambda image_id, question: None if image_id == "p3" else "red")
  examples = [_example(0, "red"), _example(1, "red"), _example(2, "green"), _example(3, "red")]
  examples += [_example(70, "red"), _example(4, "wrong", source=curate.LABELS)]
  oracle, by_data = labelled.label_precision(ctx, examples)
  assert (oracle.by, oracle.right.k, oracle.right.n) == ("oracle", 3, 5), "no answer is no label"
  # Two of three labels say red; of image 70 it knows nothing, its own labels are not measured.
  assert (by_data.by, by_data.right.k, by_data.right.n) == ("labels", 3, 4)


def test_images_are_the_unit_of_a_labels_interval(tmp_path):
  ctx = _context(tmp_path, truth=lambda image_id, question: "red" if image_id < "p3" else "blue")
  alone = labelled.label_precision(ctx, [_example(i, "red") for i in range(60)])[0].right
  shared = [_example(i, "red", origin=f"o{int(f'p{i}' < 'p3')}{i // 20}") for i in range(60)]
  shared = labelled.label_precision(ctx, shared)[0].right
  assert shared.k == alone.k and np.ptp(shared.ci95) > 1.5 * np.ptp(alone.ci95)


def test_people_come_first_and_nobody_is_said_so(tmp_path):
  ctx = _context(tmp_path, truth=lambda image_id, question: "red")
  failures = list(ctx.folder.failures())
  said = {failures[0].probe.probe_id: "right", failures[1].probe.probe_id: "wrong"}
  ctx.folder = types.SimpleNamespace(
    failures=lambda: [
      types.SimpleNamespace(probe=f.probe, label=said.get(f.probe.probe_id)) for f in failures
    ]
  )
  rows = labelled.label_precision(ctx, [TrainingExample.of(f, group="") for f in failures[:5]])
  assert [r.by for r in rows] == ["people", "oracle", "labels"]
  assert (rows[0].right.k, rows[0].right.n) == (1, 2)
  assert "1,000 examples" in evaluate.labels(1000, rows) and "n=2 by people" in evaluate.labels(
    1, rows
  )
  assert "nobody knows" in evaluate.labels(5, [])


# -------------------------------------------------------------------------------- bootstrapping


@pytest.mark.parametrize(
  ("wanted", "expected"),
  [(1, [150]), (2, [30, 150]), (3, [30, 90, 150]), (9, [30, 60, 90, 120, 150])],
)
def test_several_auditors_ask_the_last_one_among_them(tmp_path, wanted, expected):
  ctx = _context(tmp_path, unlabelled=UnlabelledConfig(auditors=wanted))
  ctx.folder = types.SimpleNamespace(auditors=lambda: dict.fromkeys((30, 60, 90, 120, 150)))
  assert bootstrap.checkpoints(ctx) == expected
  ctx.settings.optim.steps = 0
  assert bootstrap.checkpoints(ctx) == [None]


class Asker:
  """Asks about images 0, 1, 2 … of the pool, and never what was asked."""

  asked: list[tuple[int, int]] = []

  def __init__(self, ctx, bank, *, pool, full):
    assert full, "consensus needs all references"

  def ask(self, step, n, *, arm, walk, asked):
    self.asked.append((step, n))
    rows = (_attempt(i, arm=arm) for i in range(1000))
    return [a for a in rows if a.probe.probe_id not in asked][:n]


def test_each_auditor_asks_its_share_and_a_killed_stage_asks_the_rest(tmp_path, monkeypatch):
  monkeypatch.setattr(bootstrap, "Asker", Asker)
  monkeypatch.setattr(Asker, "asked", [])
  ctx = _context(tmp_path, unlabelled=UnlabelledConfig(probes=10, auditors=3))
  ctx.settings.verify = types.SimpleNamespace(limit=8)
  folder, ctx.models = ctx.folder, types.SimpleNamespace(bank=lambda: None)
  monkeypatch.setattr(folder, "auditors", lambda: {1: "", 2: "", 4: ""})
  monkeypatch.setattr(folder, "attempts", lambda: [_attempt(0), _attempt(1)])
  assert bootstrap._ask(ctx) == 10 and Asker.asked == [(1, 3), (2, 3), (4, 4)]
  finds = bootstrap._new_finds(ctx)
  assert len(finds) == 8 == len({f.probe.image_id for f in finds})
  assert not {"p0", "p1"} & {f.probe.image_id for f in finds}, "what the audit has is its own"
  whole = [[a.probe.probe_id for a in batch] for _, batch in folder.batches(BOOTSTRAP)]
  path = tmp_path / "bootstrap/attempts-0.jsonl"
  path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:5]))  # In the second one.
  ctx.folder = RunFolder(tmp_path, config_hash="x")
  monkeypatch.setattr(ctx.folder, "auditors", lambda: {1: "", 2: "", 4: ""})
  assert bootstrap._ask(ctx) == 10
  assert [[a.probe.probe_id for a in b] for _, b in ctx.folder.batches(BOOTSTRAP)] == whole
  assert Asker.asked[3:] == [(2, 3), (4, 4)]
