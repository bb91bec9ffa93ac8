# SPDX-License-Identifier: Apache-2.0
"""Scores of stored predictions: what is left out is counted, and nothing is scored twice."""

import dataclasses

import pytest

from auditdm_jax.bench.predict import BenchReply
from auditdm_jax.bench.predictions import PredictionStore
from auditdm_jax.bench.results import ResultStore, find_metric, pair
from auditdm_jax.bench.specs import MetricName
from auditdm_jax.core.config import UserError
from tests.bench import asked as made


def _first(n):
  return lambda prompt: "yes" if int(prompt.split()[2][:-1]) < n else "no"


def test_a_result_survives_its_file(tmp_path):
  asked = made.questions(made.items(10, images=5))
  rows = made.scored(made.Said(_first(7)), asked, PredictionStore(tmp_path))
  assert rows.head.values["mean"] == pytest.approx(0.7)
  assert (rows.head.units, rows.head.images, rows.head.invalid) == (10, 5, 0)
  store = ResultStore(tmp_path)
  store.append(rows)
  assert [h.result for h in ResultStore(tmp_path).heads()] == [rows.head.result]
  assert ResultStore(tmp_path).load([rows.head.result])[rows.head.result] == rows


def test_units_without_their_head_are_a_killed_runs(tmp_path):
  asked = made.questions(made.items(3))
  rows = made.scored(made.Said(_first(3)), asked, PredictionStore(tmp_path))
  ResultStore(tmp_path).append(rows)
  path = tmp_path / "results.jsonl"
  path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
  assert ResultStore(tmp_path).heads() == []
  ResultStore(tmp_path).append(rows)
  assert ResultStore(tmp_path).load([rows.head.result])[rows.head.result] == rows


def test_the_id_depends_on_metric_prompt_and_predictions(tmp_path):
  asked, store = made.questions(made.items(3)), PredictionStore(tmp_path)
  first = made.scored(made.Said(_first(3)), asked, store).head.result
  assert made.scored(made.Said(_first(0)), asked, store).head.result == first, "asked once"
  other = MetricName(name="exact_match", variant="big_vision")
  changed = [
    made.scored(made.Said(_first(3)), made.questions(asked.items, metric=other), store),
    made.scored(made.Said(_first(3)), made.questions(asked.items, template="A: {question}"), store),
    made.scored(made.Said(_first(0), identity="n"), asked, store),
  ]
  assert len({first, *(x.head.result for x in changed)}) == 4


def test_what_got_no_reply_is_left_out_with_its_group(tmp_path):
  asked = made.questions(made.items(8, group=4))

  def says(prompt):
    return BenchReply("", "failed") if "5" in prompt else "yes"

  rows = made.scored(made.Said(says), asked, PredictionStore(tmp_path))
  assert (rows.head.units, rows.head.unanswered) == (4, 4) and rows.head.values["mean"] == 1


def test_a_refusal_is_wrong_and_invalid(tmp_path):
  asked = made.questions(made.items(2))
  model = made.Said(lambda p: BenchReply("", "refused") if "0" in p else "yes")
  head = made.scored(model, asked, PredictionStore(tmp_path)).head
  assert (head.units, head.invalid, head.unanswered, head.values["mean"]) == (2, 1, 0, 0.5)


def test_items_whose_answer_nobody_knows_are_counted(tmp_path):
  items = made.items(3)
  items[1] = dataclasses.replace(items[1], references=())
  head = made.scored(made.Said(_first(3)), made.questions(items), PredictionStore(tmp_path)).head
  assert (head.units, head.unscorable) == (2, 1)
  hidden = [dataclasses.replace(x, references=()) for x in items]
  with pytest.raises(UserError, match="none of 3 items of 'test' can be scored for baseline"):
    made.scored(made.Said(_first(3)), made.questions(hidden), PredictionStore(tmp_path / "b"))


def test_other_words_than_were_asked_are_told(tmp_path):
  asked, store = made.questions(made.items(3)), PredictionStore(tmp_path)
  done = made.ask(made.Said(_first(3)), asked, store)
  with pytest.raises(UserError, match="3 of 3 questions were not put to baseline in these words"):
    pair(done, made.questions(asked.items, template="other {question}"), {})


def test_metrics_are_found_or_named():
  assert find_metric(MetricName(name="builtins:abs", variant="own"), where="x")
  with pytest.raises(UserError, match="config.a.metric: no metric 'exact_mach'"):
    find_metric(MetricName(name="exact_mach", variant="ours"), where="config.a.metric")
  with pytest.raises(UserError, match="config.a.metric: .*has no variant 'mine'"):
    find_metric(MetricName(name="exact_match", variant="mine"), where="config.a.metric")
  with pytest.raises(UserError, match="mask_iou decodes masks .* config.vae"):
    find_metric(MetricName(name="mask_iou", variant="big_vision"), where="config.a.metric")


def test_cider_of_a_part_has_a_name_of_its_own(tmp_path):
  items = [dataclasses.replace(x, references=("a dog runs", "a dog")) for x in made.items(3)]
  name = MetricName(name="cider", variant="official")
  asked, store = made.questions(items, metric=name), PredictionStore(tmp_path)
  model = made.Said(lambda _: "a dog runs")
  done = made.ask(model, asked, store)
  found = store.find({asked.key(model.model, x) for x in items})
  for part, label in ((False, "cider"), (True, "cider_subset")):
    metric = find_metric(name, where="x", part=part)
    assert pair(done, asked, found).score(metric, name).head.primary == label
