# SPDX-License-Identifier: Apache-2.0
"""VQAv2's own files become folders of images with questions."""

import json
import pathlib
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from auditdm_jax.audit import skills
from auditdm_jax.bench import specs
from auditdm_jax.core import pool

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def source(tmp_path):
  """Three images with two questions each, as the files of visualqa.org have them."""
  folder = tmp_path / "source"
  (folder / "val2014").mkdir(parents=True)
  asked, said = [], []
  for image_id in (42, 73, 139):
    name = f"COCO_val2014_{image_id:012d}.jpg"
    Image.fromarray(np.full((4, 6, 3), image_id, np.uint8)).save(folder / "val2014" / name)
    for k in range(2):
      key = {"image_id": image_id, "question_id": image_id * 1000 + k}
      asked.append(key | {"question": f"What is {image_id} / {k}?"})
      words = ["net", *[f"answer {k}"] * 9]
      answers = [{"answer": x, "answer_confidence": "yes", "answer_id": 1} for x in words]
      said.append(key | {"multiple_choice_answer": f"answer {k}", "answers": answers})
  for kind, key, rows in (
    ("v2_OpenEnded_mscoco_val2014_questions", "questions", asked),
    ("v2_mscoco_val2014_annotations", "annotations", said),
  ):
    (folder / f"{kind}.json").write_text(json.dumps({key: rows, "data_type": "mscoco"}))
  return folder


def _prepare(source, output, *more):
  command = [sys.executable, "data/vqav2/prepare.py", f"--source={source}", "--split=val2014"]
  return subprocess.run(
    [*command, f"--output={output}", *more], cwd=ROOT, capture_output=True, text=True, check=False
  )


def test_two_parts_of_a_split_are_pools_without_a_common_image(source, tmp_path):
  for name, more in (("a", ["--images=1"]), ("b", ["--skip=1"])):
    done = _prepare(source, tmp_path / "vqav2" / name, *more)
    assert done.returncode == 0, done.stderr
  a, b = (pool.open_pool(tmp_path / "vqav2", name) for name in "ab")
  assert (len(a), len(b)) == (1, 2)
  assert len({p.image_id(i) for p in (a, b) for i in range(len(p))}) == 3
  for p in (a, b):
    for i in range(len(p)):
      assert all(str(round(float(p.image(i).mean()))) in q for q in p.questions(i))
      assert p.answers(i) == tuple(("net", *[f"answer {k}"] * 9) for k in range(2))
  first = specs.from_pool(b)[0]
  assert (first.item_id, first.references[0]) == ("73000", "answer 0")


def test_a_missing_image_is_named_and_nothing_is_left(source, tmp_path):
  (source / "val2014/COCO_val2014_000000000073.jpg").unlink()
  done = _prepare(source, tmp_path / "out")
  assert done.returncode == 1 and "000000000073.jpg: no such image" in done.stderr
  assert done.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  ("question", "skill"),
  [
    ("How many zebras are there?", "counting"),
    ("What color is the bus?", "colour"),
    ("What does the sign say?", "text"),
    ("Where is the cat?", "spatial relation"),
    ("What is the man doing?", "action"),
    ("Why is the street wet?", "reasoning"),
    ("What breed is this dog?", "animal kind"),
  ],
)
def test_skills_of_photographs(question, skill):
  assign = skills.Assigner(skills.load_seeds(ROOT / "data/vqav2/skills.yaml"))
  assert assign([question])[0][0] == skill
