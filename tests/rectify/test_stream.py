# SPDX-License-Identifier: Apache-2.0
"""A stream's batches: shares, passes, answers, resuming, processes, and errors that say where."""

import collections
import dataclasses
import json

import numpy as np
from PIL import Image
import pytest

from auditdm_jax.core.config import UserError
from auditdm_jax.models import preprocess
from auditdm_jax.rectify import features, looks, rows, stream, survey
from auditdm_jax.rectify.examples import Example, JsonlExamples, PoolExamples
from auditdm_jax.text.tokenizer import Tokenizer

_SIZE = 8
_WORDS = [f"{kind}{i}" for kind in ("new", "old", "q", "r", "s") for i in range(9)]
_TOKENIZER = Tokenizer.word_level(_WORDS)
_LAYOUT = rows.RowLayout(
  _TOKENIZER, "{image}<bos>{text}\n", 4, _TOKENIZER.id("<eos>"), length=12, suffix=3
)


class Made:
  """Examples that are made when they are asked for, and remember which were opened."""

  def __init__(self, kind, size, *, answers=lambda i: ("q0",), origin=lambda i: i):
    self.kind, self._size, self._answers, self._origin = kind, size, answers, origin
    self.opened = collections.Counter()

  def __len__(self):
    return self._size

  def __getitem__(self, i, /):
    def picture():
      self.opened[i] += 1
      return np.full((2 * _SIZE, 2 * _SIZE, 3), i, np.uint8)

    return Example(
      question=f"{self.kind}{i}",
      answers=self._answers(i),
      image=f"{self.kind}{i}",
      origin=f"{self._origin(i)}",
      where=f"{self.kind} row {i}",
      open=picture,
    )


def part(source, count):
  every = np.arange(len(source))
  return stream.Part(source.kind, source, every, looks.AsPixels(_SIZE, preprocess.Pixels()), count)


def taken(feed, first, last):
  """The batches as (questions, answers) of the steps from `first` to `last`."""
  with feed.batches(first, last) as batches:
    return [fed.batch for fed in batches]


def asked(batch):
  """The questions of a batch's rows, which are the fifth token after four slots and <bos>."""
  return [_TOKENIZER.decode([int(i)]).strip() for i in batch.tokens[:, 5]]


def said(batch):
  return [_TOKENIZER.decode([int(i)]).strip() for i in batch.targets[:, 0]]


def test_shares_are_exact_and_passes_whole():
  feed = stream.Stream(_LAYOUT, [part(Made("new", 7), 3), part(Made("old", 5), 2)], seed=0)
  batches = taken(feed, 0, 14)
  assert all([q[:3] for q in asked(b)] == ["new"] * 3 + ["old"] * 2 for b in batches)
  walk = [q for b in batches for q in asked(b)[:3]]
  passes = [walk[i : i + 7] for i in range(0, 42, 7)]
  assert all(sorted(p) == [f"new{i}" for i in range(7)] for p in passes)
  assert len({tuple(p) for p in passes}) > 1
  other = stream.Stream(_LAYOUT, [part(Made("new", 7), 3), part(Made("old", 5), 2)], seed=1)
  assert [asked(b) for b in taken(other, 0, 3)] != [asked(b) for b in batches[:3]]


def test_pixels_are_those_of_their_row():
  feed = stream.Stream(_LAYOUT, [part(Made("new", 7), 4)], seed=0)
  for batch in taken(feed, 0, 3):
    number = [int(q.removeprefix("new")) for q in asked(batch)]
    np.testing.assert_array_equal(batch.images[:, 0, 0, 0], number)
    assert batch.images.dtype == np.uint8 and batch.images.shape == (4, _SIZE, _SIZE, 3)


def test_pixels_of_another_scale_come_as_floats():
  how = preprocess.Pixels(origin="hf", mean=(0.4, 0.4, 0.4))
  own = dataclasses.replace(part(Made("new", 7), 4), look=looks.AsPixels(_SIZE, how))
  (batch,) = taken(stream.Stream(_LAYOUT, [own], seed=0), 0, 1)
  number = np.array([int(q.removeprefix("new")) for q in asked(batch)])
  np.testing.assert_allclose(batch.images[:, 0, 0, 0], (number / 255 - 0.4) / 0.5, atol=1e-6)
  assert batch.images.dtype == np.float32


def test_a_resumed_stream_goes_on_to_the_example():
  make = lambda: stream.Stream(_LAYOUT, [part(Made("new", 7), 3)], seed=0)  # noqa: E731
  straight, resumed = taken(make(), 0, 9), taken(make(), 4, 9)
  for a, b in zip(straight[4:], resumed, strict=True):
    np.testing.assert_array_equal(a.tokens, b.tokens)
    np.testing.assert_array_equal(a.targets, b.targets)
    np.testing.assert_array_equal(a.images, b.images)


def test_all_answers_come_before_one_comes_again():
  source = Made("new", 4, answers=lambda i: ("q1", "q2", "q3")[: i or 1])
  batches = taken(stream.Stream(_LAYOUT, [part(source, 4)], seed=0), 0, 12)
  by_question = collections.defaultdict(list)
  for batch in batches:
    for question, answer in zip(asked(batch), said(batch), strict=True):
      by_question[question].append(answer)
  rounds = [sorted(by_question["new3"][i : i + 3]) for i in range(0, 12, 3)]
  assert rounds == [["q1", "q2", "q3"]] * 4
  assert len({tuple(by_question["new3"][i : i + 3]) for i in range(0, 12, 3)}) > 1
  assert set(by_question["new0"]) == {"q1"}


def test_any_answer_may_come_at_any_pass():
  source = Made("new", 1, answers=lambda i: ("q1", "q2", "q3"))
  feed = stream.Stream(_LAYOUT, [part(source, 4)], seed=0, answers="any")
  drawn = [x for batch in taken(feed, 0, 30) for x in said(batch)]
  assert all(25 < drawn.count(x) < 55 for x in ("q1", "q2", "q3"))
  assert any(sorted(drawn[i : i + 3]) != ["q1", "q2", "q3"] for i in range(0, 120, 3))


def test_a_process_reads_only_the_rows_of_its_own_devices(monkeypatch):
  monkeypatch.setattr(stream, "own_rows", lambda mesh, size: np.array([1, 4]))
  new, old = Made("new", 9), Made("old", 9)
  mine = taken(stream.Stream(_LAYOUT, [part(new, 3), part(old, 3)], seed=0), 0, 3)
  assert new.opened.total() == old.opened.total() == 3
  monkeypatch.undo()
  whole = taken(stream.Stream(_LAYOUT, [part(new, 3), part(old, 3)], seed=0), 0, 3)
  for a, b in zip(mine, whole, strict=True):
    np.testing.assert_array_equal(a.tokens, b.tokens[[1, 4]])
    np.testing.assert_array_equal(a.images, b.images[[1, 4]])


def test_few_images_are_decoded_ahead(monkeypatch):
  monkeypatch.setattr(looks, "_AHEAD_BYTES", 0)
  monkeypatch.setattr(looks, "_THREADS", 2)
  source = Made("new", 9)
  with stream.Stream(_LAYOUT, [part(source, 2)], seed=0).batches(0, 1000) as batches:
    next(batches)
    # The batch, the next one, the one that is being put together, and what the threads have.
    assert source.opened.total() <= 2 * 3 + 2 * 2


def test_what_is_held_back_goes_by_origin_in_all_sources():
  new = Made("new", 9, origin=lambda i: i // 2)
  old = Made("old", 9, origin=lambda i: i // 3)
  surveys = [survey.survey(source, _LAYOUT, seed=3) for source in (new, old)]
  held = survey.held_back(surveys, 0.4)
  origins = {i // 2 for i in np.flatnonzero(held[0])}
  assert len(origins) == 2  # Of five.
  assert all((i // 2 in origins) == held[0][i] for i in range(9))
  assert {i // 3 for i in np.flatnonzero(held[1])} == origins & {0, 1, 2}
  assert not any(np.any(x) for x in survey.held_back(surveys, 0.0))
  one = [survey.survey(Made("new", 3, origin=lambda i: 0), _LAYOUT, seed=0)]
  assert not np.any(survey.held_back(one, 0.4)[0])  # Something must be trained on.


def test_a_layout_has_no_padding_that_no_row_needs():
  found = survey.survey(Made("new", 3), _LAYOUT, seed=0)
  assert (found.longest, found.suffix) == (8, 2)  # Slots, <bos>, question, "\n", answer.
  assert survey.fitted(_LAYOUT, [found]) == rows.RowLayout(
    _TOKENIZER, _LAYOUT.template, 4, _LAYOUT.stop_id, length=8, suffix=2
  )


def test_examples_that_do_not_fit_are_named():
  long = Made("new", 3, answers=lambda i: ("q0",) if i < 2 else ("q0 q1 q2",))
  with pytest.raises(UserError, match="new row 2: 7 prompt and 4 suffix tokens"):
    survey.survey(long, _LAYOUT, seed=0)


def export(folder, lines):
  (folder / "images").mkdir()
  Image.new("RGB", (20, 10), "red").save(folder / "images" / "a.png")
  (folder / "images" / "b.png").write_bytes(b"no picture")
  path = folder / "train.jsonl"
  path.write_text("".join(f"{line}\n" for line in lines))
  return path


def test_rows_of_an_export(tmp_path):
  lines = [
    json.dumps({"id": "0", "image": "a.png", "prefix": "q1", "suffix": "q2"}),
    json.dumps({"id": "1", "image": "a.png", "prefix": "q3", "suffix": ["q4", "q5"]}),
  ]
  source = JsonlExamples(export(tmp_path, lines))
  assert [(e.question, e.answers, e.image) for e in source] == [
    ("q1", ("q2",), "a.png"),
    ("q3", ("q4", "q5"), "a.png"),
  ]
  pixels = looks.square(source[1], size=_SIZE, how=preprocess.Pixels())
  assert pixels.shape == (_SIZE, _SIZE, 3) and np.all(pixels == [255, 0, 0])


@pytest.mark.parametrize(
  ("row", "message"),
  [
    ("{", r"train.jsonl:2: not JSON"),
    ("[]", r"train.jsonl:2: not a JSON object"),
    ('{"image": "a.png", "prefix": "q1", "suffix": 3}', r"train.jsonl:2: suffix is neither"),
    ('{"image": "a.png", "prefix": "q1", "suffix": []}', r"train.jsonl:2: suffix is neither"),
    ('{"image": "a.png", "prefix": "", "suffix": "q1"}', r"train.jsonl:2: prefix is not"),
    ('{"image": "../c", "prefix": "q1", "suffix": "q1"}', r"train.jsonl:2: the image '../c'"),
    ('{"image": "b.png", "prefix": "q1", "suffix": "q1"}', r"train.jsonl:2: image.* cannot be"),
    ('{"image": "c.png", "prefix": "q1", "suffix": "q1"}', r"train.jsonl:2: image.* cannot be"),
  ],
)
def test_a_bad_row_is_named_with_its_file(tmp_path, row, message):
  good = json.dumps({"image": "a.png", "prefix": "q1", "suffix": "q2"})
  source = JsonlExamples(export(tmp_path, [good, row]))
  source.kind = "new"
  with pytest.raises(UserError, match=message):
    taken(stream.Stream(_LAYOUT, [part(source, 2)], seed=0), 0, 1)


class _Pool:
  split = "train"

  def __len__(self):
    return 2

  def image(self, i):
    return np.full((4, 4, 3), i, np.uint8)

  def image_ids(self, rows):
    return [f"{i:064d}" for i in rows]

  def image_id(self, i):
    return f"{i:064d}"

  def questions(self, i):
    return ("q1", "q2")[: i + 1]

  def answers(self, i):
    return ((("r1",),), ((), ("r2", "r3")))[i]

  def question_ids(self, i):
    return tuple(f"train/{i}/{j}" for j in range(i + 1))


def test_questions_of_a_pool_without_answers_are_left_out():
  pool = _Pool()
  source = PoolExamples(pool, name="data/vqa", put=lambda q: q + " r4")
  assert [(e.question, e.answers) for e in source] == [("q1 r4", ("r1",)), ("q2 r4", ("r2", "r3"))]
  assert source[1].where == "data/vqa: train/1/1"
  assert source[1].image == f"{1:064d}" and np.all(source[1].open() == 1)
  pool.answers = lambda i: ((),) * (i + 1)
  with pytest.raises(UserError, match="data/vqa: no question of the split train has an answer"):
    PoolExamples(pool, name="data/vqa", put=str)


def test_features_are_appended_once_and_read_by_row(tmp_path):
  path, shape = tmp_path / "f.f16", (2, 3)
  file = features.FeatureFile(path, shape)
  made = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
  file.append(made[:3])
  file.close()
  with open(path, "ab") as torn:
    torn.write(b"123")
  file = features.FeatureFile(path, shape)
  assert len(file) == 3
  file.append(made[3:])
  np.testing.assert_array_equal([file.read(i) for i in (3, 0)], made[[3, 0]])
  with pytest.raises(UserError, match="no row 4"):
    file.read(4)
  file.remove()
  assert not path.exists()
