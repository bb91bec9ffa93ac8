# SPDX-License-Identifier: Apache-2.0
"""Every metric of the table: rows, corpus values, and what a bootstrap does with them."""

import random

import numpy as np
import pytest

from auditdm_jax.bench import scorers
from auditdm_jax.bench.scorers import boxes, rows, table, yes_no
from auditdm_jax.bench.scorers.rows import Item, Region, Scored, Variant
from auditdm_jax.core.config import UserError
from tests.bench.scorers import made_cases


def listed(references):
  return (references,) if isinstance(references, str) else tuple(references)


def text_items(maker, n, **fields):
  rng = random.Random(0)
  for i in range(n):
    case = maker(rng)
    yield Item(
      key=str(i),
      prediction=case["prediction"],
      references=listed(case["references"]),
      options=tuple(case.get("args", {}).get("options", ())),
      category=rng.choice(("human", "augmented")),
      image=str(i // 2),
      **fields,
    )


def caption_items(n):
  rng = random.Random(0)
  for i in range(n):
    case = made_cases.captions(rng)
    yield Item(
      key=str(i), prediction=case["prediction"][0], references=tuple(case["references"][0])
    )


def box_items(n):
  rng = random.Random(0)
  for i in range(n):
    box = made_cases.box(rng)["references"]
    near = boxes.to_loc(box) if rng.random() < 0.5 else f"{box}" if rng.random() < 0.5 else "none"
    yield Item(key=str(i), prediction=near, region=Region(box=tuple(box), height=480, width=640))


def yes_no_items(n):
  rng = random.Random(0)
  for i in range(n):
    said, truth = rng.choice(made_cases.YES_NO), rng.choice(("yes", "no"))
    yield Item(key=str(i), prediction=said, references=(truth,), image=str(i // 3))


def mme_items(n):
  rng = random.Random(0)
  for i in range(n):
    category = rng.choice(made_cases.CATEGORIES)
    for truth in ("Yes", "No"):
      said = rng.choice((truth, rng.choice(made_cases.YES_NO)))
      yield Item(
        key=f"{i}/{truth}",
        prediction=said,
        references=(truth,),
        group=f"image {i}",
        category=category,
      )


def circular_items(n):
  rng = random.Random(0)
  for i in range(n):
    case = made_cases.rotations(rng)
    options = case["args"]["options_rotation_0"]
    for k, (said, letter) in enumerate(zip(case["prediction"], case["references"])):
      yield Item(
        key=f"{i}/{k}",
        prediction=said,
        references=(letter,),
        options=tuple(options[k:] + options[:k]),
        group=str(i),
        category=rng.choice("ab") if not k else "a",
      )


def items_of(name):
  makers = {
    "cider": caption_items,
    "cider_subset": caption_items,
    "box_accuracy": box_items,
    "pope_f1": yes_no_items,
    "mme_sum": mme_items,
    "circular_accuracy": circular_items,
  }
  if name in makers:
    return list(makers[name](40))
  choice = name.startswith(("choice", "mm", "seed", "letter", "realworld"))
  return list(text_items(made_cases.choice if choice else made_cases.votes, 40))


ROWS = [pytest.param(*key, id="-".join(key)) for key in table.METRICS]


@pytest.mark.parametrize(("name", "variant"), ROWS)
def test_whole_weights_are_repeated_rows(name, variant):
  metric = scorers.metric(name, variant)
  scored = metric.score(items_of(name))
  weights = np.random.default_rng(0).integers(0, 3, (5, len(scored)))
  values = metric.reduction(scored, weights.astype(float))
  for r in range(len(weights)):
    repeated = [row for row, times in zip(scored, weights[r]) for _ in range(times)]
    expected = metric.reduce(repeated)
    for value in values:
      assert values[value][r] == pytest.approx(expected[value], nan_ok=True), value
  np.testing.assert_array_equal(metric.resample(scored, weights), next(iter(values.values())))


@pytest.mark.parametrize(("name", "variant"), ROWS)
def test_rows_account_for_every_prediction(name, variant):
  metric, items = scorers.metric(name, variant), items_of(name)
  scored = metric.score(items)
  assert sum(row.n for row in scored) == len(items)
  assert len({row.key for row in scored}) == len(scored)
  values = metric.reduce(scored)
  assert values["invalid"] == sum(row.invalid for row in scored) <= len(items)
  assert 0 <= next(iter(values.values())) <= metric.scale
  unread = [Item(**{**vars(item), "prediction": ""}) for item in items]
  assert metric.reduce(metric.score(unread))["invalid"] == len(items)


def test_chartqa_averages_its_parts():
  scored = [Scored(key=str(i), score=float(i < 3), category="human") for i in range(4)]
  scored.append(Scored(key="4", score=0.0, category="augmented"))
  values = scorers.metric("relaxed_accuracy", Variant.BIG_VISION).reduce(scored)
  assert values["average"] == 0.375 and values["overall"] == 0.6
  assert values["human"] == 0.75 and values["augmented"] == 0.0


def test_categories_are_values_of_their_own():
  scored = [Scored(key="a", score=1.0, category="number"), Scored(key="b", score=0.0)]
  values = scorers.metric("vqa_accuracy", Variant.OFFICIAL).reduce(scored)
  assert values == {"mean": 0.5, "mean/number": 1.0, "invalid": 0}


def test_a_group_counts_once_and_only_if_all_of_it_is_right():
  def item(key, said, group, category):
    return Item(key=key, prediction=said, references=("A",), group=group, category=category)

  items = [
    *(item("0/0", "A", "0", "x"), item("0/1", "A", "0", "x")),
    *(item("1/0", "A", "1", "y"), item("1/1", "what?", "1", "y")),
  ]
  metric = scorers.metric("circular_accuracy", Variant.VLMEVALKIT)
  assert metric.reduce(metric.score(items)) == {
    "circular": 0.5,
    "circular/x": 1.0,
    "circular/y": 0.0,
    "vanilla": 1.0,
    "invalid": 1,
  }


def test_mmstar_is_macro_for_one_and_micro_for_the_other():
  scored = [Scored(key=str(i), score=float(i < 2), category="aaab"[i]) for i in range(4)]
  of = {v: scorers.metric("mmstar_accuracy", v) for v in (Variant.LMMS_EVAL, Variant.VLMEVALKIT)}
  one = np.ones((1, 4))
  assert of[Variant.LMMS_EVAL].resample(scored, one)[0] == pytest.approx(1 / 3)
  assert of[Variant.VLMEVALKIT].resample(scored, one)[0] == 0.5


def pope(variant, *pairs):
  metric = scorers.metric("pope_f1", variant)
  items = [Item(key=str(i), prediction=a, references=(b,)) for i, (a, b) in enumerate(pairs)]
  return metric.reduce(metric.score(items))


def test_pope_counts_what_was_said():
  pairs = (("Yes", "yes"), ("yes.", "yes"), ("no", "yes"), ("Yes, there is", "no"), ("No", "no"))
  lmms, vlmk = pope(Variant.LMMS_EVAL, *pairs), pope(Variant.VLMEVALKIT, *pairs)
  assert lmms["yes_ratio"] == 0.2 and lmms["yes_ratio_of_truth"] == 0.6
  assert lmms["invalid"] == 2 and lmms["readable"] == 0.6 and lmms["recall"] == 0.5
  assert vlmk["invalid"] == 0 and vlmk["yes_ratio"] == 0.6
  official = pope(Variant.OFFICIAL, ("There is not", "no"), ("A dog", "yes"), ("So. no", "no"))
  assert official["accuracy"] == pytest.approx(2 / 3)
  official = pope(Variant.OFFICIAL, ("A dog", "yes"), ("Yes!", "yes"), ("not", "no"), ("", "yes"))
  assert official["accuracy"] == 1.0 and official["invalid"] == 2  # All else is read as yes.


def test_mme_in_its_three_readings():
  readers = (yes_no.first_four, yes_no.first_four_or_initial, yes_no.one_of_the_words)
  table_of = {
    "Yes": ("yes", "yes", "yes"),
    "not sure": ("no", "no", ""),
    "Know": ("no", "no", ""),
    "y": ("", "yes", ""),
    " yes": ("yes", "yes", "yes"),
    "Y.es": ("", "yes", "yes"),
    "The answer is no": ("", "", "no"),
    "yes and no": ("yes", "yes", ""),
    "": ("", "", ""),
  }
  for said, expected in table_of.items():
    assert tuple(reader(said) for reader in readers) == expected, said


def test_mme_asks_twice():
  def items(*categories):
    return [
      Item(key=str(i), prediction="yes", references=("yes",), group="i1", category=x)
      for i, x in enumerate(categories)
    ]

  metric = scorers.metric("mme_sum", Variant.LMMS_EVAL)
  values = metric.reduce(metric.score(items("OCR", "OCR")))
  assert values["sum"] == values["perception"] == values["OCR"] == 200
  with pytest.raises(UserError, match="two questions about an image, and i1 .count. has 1"):
    metric.score(items("count"))
  with pytest.raises(UserError, match="no category 'Ocr' in MME"):
    metric.score(items("Ocr", "Ocr"))


def test_an_outsiders_function_becomes_a_metric():
  metric = scorers.per_answer(lambda prediction, references: float(prediction in references))
  made = [Item(key=x, prediction=x, references=("a",), image="i") for x in ("a", "b", " ")]
  scored = metric.score(made)
  assert [row.score for row in scored] == [1, 0, 0] and scored[0].image == "i"
  assert metric.reduce(scored) == {"mean": pytest.approx(1 / 3), "invalid": 1}


def test_a_weighting_without_rows_is_nan():
  scored = [Scored(key="a", score=1.0, category="x"), Scored(key="b", score=0.0, category="y")]
  weights = np.asarray([[0.0, 2.0], [0.0, 0.0]])
  assert np.isnan(rows.mean(scored, weights)["mean"]).tolist() == [False, True]
  assert rows.macro(scored, weights[:1])["macro"][0] == 0.0


def test_names_that_are_not_there():
  with pytest.raises(UserError, match=r"no metric 'cidr' \(did you mean 'cider'\?\)"):
    scorers.metric("cidr", "official")
  with pytest.raises(UserError, match="exact_match has no variant 'official'; it has big_vision"):
    scorers.metric("exact_match", "official")
  assert scorers.metric("anls", "anls-star") is table.METRICS["anls", Variant.ANLS_STAR]
