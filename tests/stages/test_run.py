# SPDX-License-Identifier: Apache-2.0
"""What stages of several processes share: files of the first one, shares of a pool."""

import numpy as np
import pytest

from auditdm_jax.audit.attempt import Attempt, unique_attempts
from auditdm_jax.audit.probe import Probe, Verdict
from auditdm_jax.audit.ranking import Ranked
from auditdm_jax.core import runtime
from auditdm_jax.core.config import UserError, build
from auditdm_jax.core.image_store import Images
from auditdm_jax.core.records import Stored
from auditdm_jax.images.config import ImagesConfig
from auditdm_jax.stages import run, service
from auditdm_jax.stages.pools import ImageSource, InMemoryPool
from auditdm_jax.stages.results import Controlled, Repairs


class Rows:
  """A pool that remembers what was read."""

  split = "pool"

  def __init__(self):
    self.read = []

  def __len__(self):
    return 5

  def image(self, i):
    self.read.append(i)
    return np.full((2, 2, 3), i, np.uint8)

  def image_ids(self, rows):
    return [Images.id_of(self.image(i)) for i in rows]

  def questions(self, i):
    return (f"q{i}",)

  def answers(self, i):
    return ()


@pytest.mark.parametrize("process", [0, 1])
def test_each_process_reads_its_share_of_the_pool_and_knows_all_ids(monkeypatch, process):
  ids = [Images.id_of(np.full((2, 2, 3), i, np.uint8)) for i in range(5)]
  monkeypatch.setattr(runtime, "mine", lambda rows: rows[process::2])
  gathered = []
  monkeypatch.setattr(runtime, "gather", lambda own: gathered.append(own) or [ids[::2], ids[1::2]])
  rows = Rows()
  pool = InMemoryPool(rows, cache_bytes=1 << 20)
  assert gathered == [ids[process::2]] and rows.read == list(range(5))[process::2]
  assert [pool.image_id(i) for i in range(len(pool))] == ids
  source = ImageSource(Images, cache_bytes=0)
  source.add_pool(pool)
  rows.read.clear()
  assert [source(image_id)[0, 0, 0] for image_id in ids] == list(range(5))
  assert [source(image_id)[0, 0, 0] for image_id in ids] == list(range(5))
  assert rows.read == list(range(5))  # Once, when they are needed.
  assert [pool.questions(i) for i in range(5)] == [(f"q{i}",) for i in range(5)]


def test_images_that_do_not_fit_are_read_again():
  rows = Rows()
  pool = InMemoryPool(rows, cache_bytes=2 * 12)
  for read in ([0, 1, 2, 3, 4], [2, 3, 4]):
    rows.read.clear()
    assert [pool.image(i)[0, 0, 0] for i in range(5)] == list(range(5)) and rows.read == read


def test_made_images_are_kept_as_far_as_they_fit(tmp_path, monkeypatch):
  made = Images(tmp_path)
  source = ImageSource(made, cache_bytes=2 * 12)
  ids = [source.put(np.full((2, 2, 3), i, np.uint8)) for i in range(4)]
  read = []
  get = made.get
  monkeypatch.setattr(made, "get", lambda i: read.append(i) or get(i))
  assert [source(i)[0, 0, 0] for i in ids[2:]] == [2, 3] and not read
  assert source(ids[0])[0, 0, 0] == 0 and read == ids[:1]
  assert source(ids[3])[0, 0, 0] == 3 and source(ids[0])[0, 0, 0] == 0 and read == ids[:1]
  assert source(ids[2])[0, 0, 0] == 2 and read == [ids[0], ids[2]]
  assert source(ids[3])[0, 0, 0] == 3 and read == [ids[0], ids[2], ids[3]]


def test_the_first_process_writes_and_all_read_at_the_same_point(monkeypatch, tmp_path):
  waits = []
  monkeypatch.setattr(runtime, "barrier", lambda: waits.append(len(waits)))
  first, second = run.SharedRecords(tmp_path), run.SharedRecords(tmp_path)
  first.append("rows", [{"step": 0}, {"step": 1}])
  monkeypatch.setattr(runtime, "is_main", lambda: False)
  second.append("rows", [{"step": 2}])
  run.write_json(tmp_path / "done.json", {})
  assert second.rewind("rows", 0) == 0 and run.read_json(tmp_path / "done.json") is None
  assert second.read("rows") == [{"step": 0}, {"step": 1}] and second.keys("rows", "step") == {0, 1}
  assert len(waits) == 6


@pytest.mark.parametrize(
  ("images", "message"),
  [
    (dict(address="http://a:1"), "not the address of an image service"),
    (dict(address="a:1", client=dict(security=dict(ca="/"))), "directory"),
  ],
)
def test_a_mistake_in_how_to_reach_the_images_is_one_line(images, message, tmp_path):
  with pytest.raises(UserError, match=message):
    with service.connected(build(ImagesConfig, images), images, local=tmp_path):
      pass


def _attempts(batch, n=3):
  verdict = Verdict(
    probe_id="",
    answers={"t": "red", "r": "blue"},
    target="t",
    references=("r",),
    consensus="blue",
    agree=True,
    disagreement=True,
    reason="disagreement",
  )
  return [
    Attempt(probe=Probe.make(f"i{batch}", f"q{i % 2}", step=i), verdict=verdict) for i in range(n)
  ]


def _ranked(batch):
  return Ranked(batch, {"random": 3}, candidates=3, images=2, made=0, flops={"surrogate": 0.0})


def test_attempts_are_read_as_they_lie_and_a_torn_batch_is_left_out(tmp_path):
  folder = run.RunFolder(tmp_path, config_hash="")
  for batch in (0, 2):  # Batch 1 had nothing to ask.
    folder.append_sweep(_ranked(batch), _attempts(batch))
  path = tmp_path / "discover/attempts-0.jsonl"
  whole = path.read_bytes()
  folder.append_sweep(_ranked(3), _attempts(3))
  lines = path.read_bytes().splitlines(keepends=True)
  path.write_bytes(b"".join(lines[:-1]))  # Killed before the last row of batch 3.
  assert [batch for batch, _ in folder.sweep()] == [0, 2]
  swept = folder.swept()
  assert list(swept) == [*_attempts(0), *_attempts(2)] == list(folder.attempts())
  run.RunFolder(tmp_path, config_hash="").append_sweep(_ranked(3), _attempts(3))
  assert path.read_bytes().startswith(whole) and len(list(swept)) == 9
  folder.write_control(_attempts(5))
  assert [row.batch for row in folder.ranked()] == [0, 2, 3]
  assert list(folder.control()) == _attempts(5) and len(list(folder.asked())) == 12


def test_each_question_counts_once_by_its_last_attempt_however_it_is_read():
  attempts = _attempts(0)
  expected = [attempts[1], attempts[2]]
  assert list(unique_attempts(attempts)) == expected
  assert list(unique_attempts(a for a in attempts)) == expected
  unique = unique_attempts(Stored(lambda: iter(attempts)))
  assert list(unique) == list(unique) == expected
  assert unique and not unique_attempts([])


@pytest.mark.parametrize(
  "result",
  [
    {"models": {"repaired": {"table": {"all": 3}, "examples": 1}}},
    {"models": {"repaired": {}}},
    {"models": []},
    {},
  ],
)
def test_a_result_of_another_version_is_one_line(tmp_path, result):
  folder = run.RunFolder(tmp_path, config_hash="h")
  folder.finish("rectify", result)
  with pytest.raises(UserError, match=r"rectify/done\.json: not what this version writes"):
    folder.done("rectify", Repairs)


def test_what_the_first_process_reads_alone_waits_for_nobody(monkeypatch):
  waits = []
  monkeypatch.setattr(runtime, "barrier", lambda: waits.append("barrier"))
  with run.reading():
    pass
  assert len(waits) == 2
  with run.first_only() as mine:
    assert mine
    with run.reading():
      pass
  assert len(waits) == 3, "before the block; the others are not in it"
  with run.reading():
    pass
  assert len(waits) == 5


def test_a_run_takes_over_stages_of_another_one_and_leaves_that_as_it_is(tmp_path):
  theirs = run.RunFolder(tmp_path / "old", config_hash="old")
  theirs.write_control(_attempts(1))
  theirs.finish("control", Controlled(2))
  (tmp_path / "old/images").mkdir()
  (tmp_path / "old/images/a.png").write_bytes(b"png")
  ours = run.RunFolder(tmp_path / "new", config_hash="new")
  ours.borrow(tmp_path / "old", ["control", "verify"], linked=["images"])
  assert ours.done("control", Controlled) == Controlled(2)
  assert list(ours.control()) == _attempts(1)
  assert not (tmp_path / "new/verify").exists()
  assert (tmp_path / "new/images/a.png").stat().st_nlink == 2
  # What is written now is its own, and what is there stays.
  ours.finish("control", Controlled(3))
  ours.borrow(tmp_path / "old", ["control"])
  assert ours.done("control", Controlled) == Controlled(3)
  assert theirs.done("control", Controlled) == Controlled(2)
  with pytest.raises(UserError, match="another config"):
    run.RunFolder(tmp_path / "old", config_hash="new").done("control", Controlled)
  assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["control", "images"]
