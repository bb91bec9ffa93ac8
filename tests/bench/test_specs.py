# SPDX-License-Identifier: Apache-2.0
"""The benchmarks as data: prompts to the letter, metrics that exist, numbers, outsiders."""

import json
import pathlib
import sys

import pytest

from auditdm_jax.bench import scorers
from auditdm_jax.bench.items import BenchmarkItem
from auditdm_jax.bench.specs import SPECS, Family, find
from auditdm_jax.core.config import UserError
from tests.bench.layouts import fakes

ITEM = BenchmarkItem(
  item_id="1",
  pictures=(),
  image_key="1",
  question="Is {it} red? Please answer yes or no.",
  options=("cat", "", "dog"),
  references=("dog",),
  answer=2,
  hint="Look.",
)
OPEN = BenchmarkItem(item_id="1", pictures=(), image_key="1", question="q", references=("x",))


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
def test_a_spec_is_whole(spec):
  assert spec.split in spec.splits and spec.cluster in ("image_key", "group")
  assert spec.source.startswith("https://") and spec.licence
  assert all(row.split in spec.splits for row in spec.paper)
  assert set(spec.sizes) <= set(spec.splits)
  assert Family.LMMS_EVAL in spec.prompts and Family.VLMEVALKIT in spec.prompts
  for family, prompt in spec.prompts.items():
    assert spec.prompt(family).render(ITEM) and prompt.source and prompt.max_tokens > 0
    if prompt.metric.name != "mask_iou":  # Takes a file of the user.
      assert scorers.metric(prompt.metric.name, prompt.metric.variant)
    for split in spec.splits:
      assert all(x.expected(split) for x in spec.layouts if split in x.splits)


@pytest.mark.parametrize(
  ("name", "family", "prompt"),
  [
    ("vqav2", Family.TRANSFER, "answer en Is {it} red? Please answer yes or no."),
    # Two blanks, and tabs between the options.
    (
      *("ai2d", Family.TRANSFER),
      "answer en  Is {it} red? Please answer yes or no. choose from: cat \t dog",
    ),
    ("docvqa", Family.TRANSFER, "Is {it} red? Please answer yes or no."),
    ("refcoco", Family.TRANSFER, "Is {it} red? Please answer yes or no."),
    ("refcoco", Family.MIX, "segment Is {it} red? Please answer yes or no."),
    ("refcoco-boxes", Family.MIX, "detect Is {it} red? Please answer yes or no."),
    ("cococap", Family.TRANSFER, "caption en"),
    (
      *("mme", Family.LMMS_EVAL),
      "Is {it} red?\nAnswer the question using a single word or phrase.",
    ),
    (
      *("mmbench", Family.LMMS_EVAL),
      "Look. Is {it} red? Please answer yes or no. There are several options:\nA. cat\nC. dog\n\n"
      "Answer with the option's letter from the given choices directly.",
    ),
    (
      *("mmbench", Family.VLMEVALKIT),
      "Hint: Look.\nQuestion: Is {it} red? Please answer yes or no.\nOptions:\nA. cat\nC. dog\n"
      "Please select the correct answer from the options above. \n",
    ),
    (
      *("mmt", Family.LMMS_EVAL),
      "Question: \nIs {it} red? Please answer yes or no.\nA: cat\nC: dog\n"
      "Answer the question using a single character from the given options.",
    ),
  ],
)
def test_prompts_are_those_of_the_references(name, family, prompt):
  assert find(name, where="test").prompt(family).render(ITEM) == prompt


def test_open_questions_have_a_prompt_of_their_own():
  prompt = find("mmmu", where="test").prompt(Family.LMMS_EVAL)
  assert prompt.render(OPEN) == "q\n\nAnswer the question using a single word or phrase."
  assert prompt.references(OPEN) == ("x",) and prompt.references(ITEM) == ("C",)
  assert find("ai2d", where="test").prompt(Family.TRANSFER).references(ITEM) == ("dog",)


def test_numbers_of_the_paper():
  rows = {spec.name: spec.paper[0] for spec in SPECS if spec.paper}
  assert len(rows) == 16  # One for each benchmark.
  assert (rows["vqav2"].baseline, rows["vqav2"].repaired, rows["vqav2"].sd) == (84.8, 86.7, 0.2)
  assert rows["ai2d"].larger == {"10B": 84.4, "28B": 84.6} and rows["docvqa"].at_224 == 39.9
  assert (rows["mme"].baseline, rows["pope"].larger["27B"]) == (1376.0, 85.2)


def test_a_benchmark_that_is_not_there_is_named():
  with pytest.raises(UserError, match=r"config.b='vqa2': no such benchmark \(did you mean 'vqav2'"):
    find("vqa2", where="config.b")
  with pytest.raises(UserError, match="mmbench has no prompt for paligemma-transfer"):
    find("mmbench", where="config.b").prompt(Family.TRANSFER)


def test_an_outsiders_benchmark_takes_no_line_of_the_package(tmp_path, monkeypatch):
  data = tmp_path / "data/test"
  fakes.write_picture(data / "1.png", 40)
  row = {"image": "1.png", "question": "Which bird?", "answer": ["gull", "tern"], "id": "a"}
  (data / "questions.jsonl").write_text(json.dumps(row) + "\n")
  section = {"name": "birds", "scorer": "birds_scorer:score", "prompt": "bird: {question}"}
  spec = find(section, where="config.benchmark.specs")
  (item,) = spec.open(tmp_path / "data")
  assert (item.item_id, item.references, fakes.shown(item.image())) == ("a", ("gull", "tern"), 40)
  assert spec.prompt(Family.LMMS_EVAL).render(item) == "bird: Which bird?"
  assert spec.prompt(Family.TRANSFER).metric.name == "birds_scorer:score"
  with pytest.raises(UserError, match="config.benchmark.specs.scorrer: unknown key"):
    find(section | {"scorrer": "x:y"}, where="config.benchmark.specs")
  monkeypatch.syspath_prepend(str(tmp_path))
  pathlib.Path(tmp_path, "my_birds.py").write_text(
    "import dataclasses\nfrom auditdm_jax.bench.specs import pope\n"
    "SPEC = dataclasses.replace(pope.SPEC, name='birds')\nOTHER = 3\n"
  )
  assert find("my_birds:SPEC", where="config.b").name == "birds"
  with pytest.raises(UserError, match="expected a BenchmarkSpec, got int"):
    find("my_birds:OTHER", where="config.b")
  sys.modules.pop("my_birds")


def test_the_page_has_every_benchmark():
  page = pathlib.Path(__file__).parents[2].joinpath("docs/benchmarks.md").read_text()
  for spec in SPECS:
    assert f"`{spec.name}`" in page and spec.licence in page and spec.source.split(" ")[0] in page
