# SPDX-License-Identifier: Apache-2.0
"""Predictions are asked once, kept as they come, and found under what decides them."""

import dataclasses
import json

import pytest

from auditdm_jax.bench import predict
from auditdm_jax.bench.predict import BenchReply
from auditdm_jax.bench.predictions import PredictionStore
from auditdm_jax.core.config import UserError
from tests.bench import asked as made


def test_a_killed_run_loses_one_chunk_and_asks_the_rest(tmp_path):
  asked = made.questions(made.items(10))
  first = made.Said(lambda _: "yes", dies_after=6)
  with pytest.raises(RuntimeError, match="power cut"):
    made.ask(first, asked, PredictionStore(tmp_path), batch_size=3)
  torn = tmp_path / "predictions-0.jsonl"
  torn.write_bytes(torn.read_bytes() + b'{"key": "cut sho')
  second, seen = made.Said(lambda _: "yes"), []
  done = made.ask(second, asked, PredictionStore(tmp_path), batch_size=3, on_batch=seen.append)
  assert first.prompts + second.prompts == [f"Q: question {i}?" for i in range(10)]
  assert seen == [3, 4] and (done.items, done.failed) == (10, 0)
  third = made.Said(lambda _: "no")
  made.ask(third, asked, PredictionStore(tmp_path))
  assert not third.prompts


def test_what_decides_a_prediction_is_in_its_key(tmp_path):
  asked, store = made.questions(made.items(2)), PredictionStore(tmp_path)
  made.ask(made.Said(lambda _: "yes"), asked, store)
  others = {
    "weights": (made.Said(lambda _: "no", identity="other"), asked),
    "words": (made.Said(lambda _: "no"), made.questions(asked.items, template="{question}")),
    "pixels": (
      made.Said(lambda _: "no"),
      dataclasses.replace(asked, prompt=dataclasses.replace(asked.prompt, antialias=False)),
    ),
    "split": (made.Said(lambda _: "no"), dataclasses.replace(asked, split="val")),
    "image": (
      made.Said(lambda _: "no"),
      made.questions([dataclasses.replace(x, image_key="other") for x in asked.items]),
    ),
  }
  for what, (model, questions) in others.items():
    made.ask(model, questions, store)
    assert len(model.prompts) == 2, what
  again = made.Said(lambda _: "no")
  made.ask(again, dataclasses.replace(asked, items=asked.items[:1]), store, role="repaired")
  assert not again.prompts, "a part and another role find what is there"


def test_questions_of_one_image_go_together_and_pictures_bound_a_chunk(tmp_path):
  items = made.items(12, images=4)
  model = made.Said(lambda _: "yes", pictures=2)
  made.ask(model, made.questions(items), PredictionStore(tmp_path))
  assert model.chunks == [["im0"] * 3 + ["im1"] * 3, ["im2"] * 3 + ["im3"] * 3]
  assert all(len(x.pictures[0].looks) == 3 for x in items), "told apart, and never decoded here"


def test_what_failed_is_asked_again_and_counted_once(tmp_path):
  asked, store = made.questions(made.items(3)), PredictionStore(tmp_path)
  down = made.Said(lambda p: BenchReply("", "failed", "down") if "1" in p else "yes")
  assert made.ask(down, asked, store).failed == 1
  assert made.ask(down, asked, store).failed == 1
  assert down.prompts.count("Q: question 1?") == 2 and len(down.prompts) == 4
  rows = [json.loads(x) for x in (tmp_path / "predictions-0.jsonl").open()]
  assert [r["finish"] for r in rows] == ["eos", "failed", "eos"]
  up = made.Said(lambda _: BenchReply("long", "length"))
  done = made.ask(up, asked, store)
  assert (done.failed, done.cut) == (0, 1) and len(up.prompts) == 1
  assert made.ask(made.Said(lambda _: "no"), asked, store).failed == 0


def test_hostile_replies_are_kept_as_text(tmp_path):
  hostile = '<script>\n"}\x00\u202e|' + "\ud800" + "x" * 100_000
  asked, store = made.questions(made.items(1)), PredictionStore(tmp_path)
  model = made.Said(lambda _: hostile)
  made.ask(model, asked, store)
  (found,) = store.find({asked.key(model.model, asked.items[0])}).values()
  assert found.prediction.startswith('<script>\n"}\x00\u202e|?xxx')
  assert len(found.prediction) == 1 << 16


def test_two_items_of_one_id_are_told(tmp_path):
  with pytest.raises(UserError, match="mine: two items have the id 'q0'"):
    made.ask(made.Said(str), made.questions(made.items(1) * 2), PredictionStore(tmp_path))


def test_a_model_that_answers_too_few_is_a_fault(tmp_path):
  model = made.Said(str)
  model.reply = lambda asked, *, max_tokens: []
  with pytest.raises(ValueError, match="0 replies to 2 questions"):
    made.ask(model, made.questions(made.items(2)), PredictionStore(tmp_path))


@pytest.mark.parametrize("limit", [1, 7, 20, 39])
def test_a_part_is_whole_clusters_and_lies_in_a_larger_part(limit):
  items, spec = made.items(40, images=20), made.questions([]).spec
  chosen = predict.part(items, limit, spec=spec, seed=1)
  larger = predict.part(items, limit + 1, spec=spec, seed=1)
  assert set(chosen) <= set(larger) and len(chosen) in (limit - limit % 2, 2)
  images = {items[i].image_key for i in chosen}
  assert len(chosen) == 2 * len(images)
  assert predict.part(items, 0, spec=spec, seed=1) == list(range(40))
  assert limit > 30 or chosen != predict.part(items, limit, spec=spec, seed=2)


def test_a_part_keeps_what_counts_together():
  items = made.items(40, images=40, group=4)
  spec = made.questions([], cluster="group").spec
  chosen = predict.part(items, 10, spec=spec, seed=0)
  assert len(chosen) == 8 and len({items[i].group for i in chosen}) == 2
