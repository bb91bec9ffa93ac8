# SPDX-License-Identifier: Apache-2.0
"""label: from a run's finds to a page, and from a rater's file back to grades and shares."""

import contextlib
import json
import types

import numpy as np
import pytest

from auditdm_jax import __main__ as main_lib
from auditdm_jax.audit import label_files
from auditdm_jax.audit import labels as labels_lib
from auditdm_jax.stages import label, past
from auditdm_jax.stages.run import RunFolder
from tests.audit.report import sample

FINDS = 60


@pytest.fixture
def run(tmp_path, monkeypatch):
  """The folder of a run whose finds are verified; its images are one colour each."""
  folder = RunFolder(tmp_path / "run", config_hash="x")
  made, finds = {}, []
  for i in range(FINDS):
    image = np.full((8, 8, 3), 4 * i, np.uint8)
    key = folder.images.id_of(image)
    made[key] = image
    grade, mode = ("V0" if i % 3 == 0 else "V1"), f"m{i % 2}"
    finds.append(sample.failure(int(key, 16), f"{sample.HOSTILE} {i}", grade=grade, mode_id=mode))
  folder.append_failures(finds)
  context = types.SimpleNamespace(
    folder=folder,
    settings=types.SimpleNamespace(seed=3),
    images=made.__getitem__,
    pool=lambda role: None,
  )

  @contextlib.contextmanager
  def opened(workdir, stage):
    assert stage == "label"
    yield context

  monkeypatch.setattr(past, "opened", opened)
  return folder


def _label(run, *more):
  for name in label.FLAGS:  # Flags of one process keep what the last command gave.
    label.FLAGS[name].unparse()
  return main_lib.run(["label", f"--workdir={run.path}", *more])


def _saved(run, path, *, rater, right=True, finds=None):
  """A rater's file that says of all finds in the sample that they are right, or wrong."""
  drawn = run.sample()
  said = [
    {"find": row.key, "said": "A" if (row.first == "consensus") == right else "B"}
    for row in drawn[:finds]
  ]
  data = dict(format=label_files.FORMAT, sample=label_files.sample_id(drawn), rater=rater)
  path.write_text(json.dumps({**data, "labels": said}))
  return f"--read={path}"


def test_finds_are_drawn_labelled_and_scored(run, tmp_path, capsys):
  assert _label(run, "--n=20") == 0
  page = run.path / "labels/page"
  assert len(run.sample()) == 20 and (page / "index.html").is_file()
  assert len((page / "label.csv").read_text().splitlines()) == 21
  before = run.sample()
  assert _label(run, "--n=20", "--rater=ann") == 0 and run.sample() == before
  assert _label(run, "--n=30") == 0 and run.sample()[:20] == before
  assert len(list((page / "images").iterdir())) == 30
  assert [f.label for f in run.failures()] == [None] * FINDS  # A sample is no label.

  ann = _saved(run, tmp_path / "ann.json", rater="ann")
  bob = _saved(run, tmp_path / "bob.json", rater="bob")
  capsys.readouterr()
  assert _label(run, ann, bob) == 0
  said = capsys.readouterr().out
  assert "30 of 30 finds labelled (ann 30, bob 30)" in said and "kappa not defined" in said
  found = run.failures()
  assert {f.grade for f in found if f.label == "right"} == {"V3", "V0"}
  assert sum(f.label == "right" for f in found) == 30
  assert [f.grade for f in run.graded()].count("V3") == 0  # What verification wrote stays.
  rows = len(run.labels())
  assert _label(run, ann) == 0 and len(run.labels()) == rows

  # Ann thinks again: her last word counts.
  assert _label(run, _saved(run, tmp_path / "ann.json", rater="ann", right=False)) == 0
  assert {f.label for f in run.failures()} == {None, "unclear"}
  scores = labels_lib.score(run.graded(), run.sample(), run.labels())
  assert scores is not None and (scores.unclear, scores.finds.n) == (30, 0)


def test_a_damaged_file_stores_nothing(run, tmp_path, capsys):
  bad = tmp_path / "bad.json"
  bad.write_text("{}")
  assert _label(run, f"--read={bad}") == 2
  assert "run label without --read first" in capsys.readouterr().err
  assert _label(run, "--n=20") == 0
  good = _saved(run, tmp_path / "ann.json", rater="ann", finds=5)
  assert _label(run, good, f"--read={bad}") == 2 and run.labels() == []
  error = capsys.readouterr().err
  assert error.count("\n") == 1 and str(bad) in error
  assert _label(run, f"--read={tmp_path / 'none'}") == 2
  assert _label(run, "--rater=a\nb") == 2
