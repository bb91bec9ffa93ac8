# SPDX-License-Identifier: Apache-2.0
"""The files that authors publish."""

import json
import pathlib
import pickle
from typing import Any

from auditdm_jax.bench.layouts import raw_choice
from tests.bench.layouts import fakes
from tests.bench.layouts.shared import (
  ASKED,
  CAPTIONS,
  IMAGES,
  OPTIONS,
  SENTENCES,
  TEN,
  VALUES,
  Expected,
  chosen,
  grounded,
  want_of,
)


def _coco_picture(root: pathlib.Path, part: str, k: int) -> str:
  name = f"COCO_{part}_{IMAGES[k]:012d}.jpg"
  fakes.write_picture(root / part / name, VALUES[k])
  return name


def _coco_questions(root: pathlib.Path, prefix: str, *, raw: bool = False) -> None:
  asked, said = [], []
  for k in range(3):
    _coco_picture(root, "val2014", k)
    key = {"image_id": IMAGES[k], "question_id": 420 + k}
    asked.append(key | {"question": ASKED[k]})
    answers = [{"answer": x, "answer_confidence": "yes", "answer_id": 1} for x in TEN[k]]
    answers = [x | ({"raw_answer": "raw"} if raw else {}) for x in answers]
    said.append(key | {"question_type": "what is", "answer_type": "other", "answers": answers})
  fakes.write_json(root / f"{prefix}OpenEnded_mscoco_val2014_questions.json", {"questions": asked})
  fakes.write_json(root / f"{prefix}mscoco_val2014_annotations.json", {"annotations": said})


def vqav2_raw(root: pathlib.Path) -> Expected:
  _coco_questions(root, "v2_")
  return want_of(
    (420, 421, 422),
    question=ASKED,
    references=[tuple(x) for x in TEN],
    image_key=list(map(str, IMAGES)),
    category=["other"] * 3,
    metadata=[{"question_type": "what is"}] * 3,
  )


def okvqa_raw(root: pathlib.Path) -> Expected:
  _coco_questions(root, "", raw=True)
  kept = [{"question_type": "what is", "answers_raw": ["raw"] * 10}] * 3
  said = [tuple(x) for x in TEN]
  return want_of((420, 421, 422), question=ASKED, references=said, metadata=kept)


def gqa_raw(root: pathlib.Path) -> Expected:
  content = {}
  for k in range(3):
    fakes.write_picture(root / "images" / f"n{IMAGES[k]}.jpg", VALUES[k])
    content[f"q{k}"] = {"imageId": f"n{IMAGES[k]}", "question": ASKED[k], "answer": "yes"}
    content[f"q{k}"] |= {"fullAnswer": "Yes.", "types": {"structural": "verify"}}
  fakes.write_json(root / "testdev_balanced_questions.json", content)
  return want_of(
    ["q0", "q1", "q2"],
    question=ASKED,
    references=[("yes",)] * 3,
    image_key=[f"n{x}" for x in IMAGES],
    category=["verify"] * 3,
  )


def pope_raw(root: pathlib.Path) -> Expected:
  keys = []
  for n, part in enumerate(("random", "popular", "adversarial")):
    image = _coco_picture(root, "val2014", n)
    keys.append(image)
    line = {"question_id": 1, "image": image, "text": ASKED[n], "label": "no"}
    (root / f"coco_pope_{part}.json").write_text(json.dumps(line) + "\n")
  ids = ("random/1", "popular/1", "adversarial/1")
  return want_of(ids, question=ASKED, references=[("no",)] * 3, image_key=keys)


def docvqa_raw(root: pathlib.Path) -> Expected:
  rows = []
  for k in range(3):
    fakes.write_picture(root / f"val/documents/{IMAGES[k]}.png", VALUES[k])
    rows.append({"questionId": k, "question": ASKED[k], "image": f"documents/{IMAGES[k]}.png"})
    rows[-1] |= {"question_types": ["form", "layout"], "answers": ["a", "b"], "docId": 5}
  fakes.write_json(root / "val_v1.0_withQT.json", {"dataset_split": "val", "data": rows})
  return want_of(
    range(3),
    question=ASKED,
    references=[("a", "b")] * 3,
    image_key=[f"{x}.png" for x in IMAGES],
    category=["form, layout"] * 3,
  )


def chartqa_raw(root: pathlib.Path) -> Expected:
  rows = []
  for k in range(3):
    fakes.write_picture(root / f"test/png/{IMAGES[k]}.png", VALUES[k])
    rows.append({"imgname": f"{IMAGES[k]}.png", "query": ASKED[k], "label": "14"})
  fakes.write_json(root / "test/test_human.json", rows)
  fakes.write_json(root / "test/test_augmented.json", rows[:1])
  ids = [f"human/{k}" for k in range(3)]
  return want_of(ids, question=ASKED, references=[("14",)] * 3, category=["human"] * 3)


def ai2d_raw(root: pathlib.Path) -> Expected:
  for k, image in enumerate((42, 73)):
    name = f"{image}.png"
    fakes.write_picture(root / "ai2d/images" / name, (40, 80)[k])
    questions = {
      ASKED[n]: {"questionId": f"{name}-{n}", "answerTexts": OPTIONS, "correctAnswer": n}
      | {"abcLabel": False}
      for n in range(3)
      if IMAGES[n] == image
    }
    write = fakes.write_json
    write(root / f"ai2d/questions/{name}.json", {"imageName": name, "questions": questions})
    write(root / f"ai2d/annotations/{name}.json", {"text": {}})
  (root / "ai2d_test_ids.csv").write_text("42\n73\n")
  return chosen(["42.png-0", "73.png-1", "73.png-2"], image_key=["42.png", "73.png", "73.png"])


def _refs(root: pathlib.Path) -> list[dict[str, Any]]:
  polygon = [[2.0, 0.0, 6.0, 0.0, 6.0, 3.0, 2.0, 3.0]]
  # Down the columns: 12 zeros, then 3 ones and 3 zeros, four times, then zeros.
  runs = {"size": [6, 8], "counts": [12, 3, 3, 3, 3, 3, 3, 3, 15]}
  images, objects = [], []
  for k, image in enumerate((42, 73)):
    name = f"COCO_train2014_{image:012d}.jpg"
    fakes.write_picture(root / "train2014" / name, (40, 80)[k])
    images.append({"id": image, "file_name": name, "height": 6, "width": 8})
    objects.append({"id": k, "image_id": image, "bbox": [1.0, 1.5, 4.0, 3.0]})
    objects[-1] |= {"segmentation": (polygon, runs)[k], "category_id": 1, "iscrowd": k}
  content = {"images": images, "annotations": objects, "categories": []}
  fakes.write_json(root / "refcoco/instances.json", content)
  said = [{"sent_id": 100 + k, "sent": x, "raw": x.upper()} for k, x in enumerate(SENTENCES)]
  refs = [
    {"ref_id": k, "ann_id": k, "image_id": image, "split": "val", "sentences": sentences}
    for k, image, sentences in ((0, 42, said[:1]), (1, 73, said[1:]))
  ]
  return [*refs, {**refs[0], "split": "train"}]


def refcoco_raw(root: pathlib.Path) -> Expected:
  refs = _refs(root)
  (root / "refcoco/refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
  return grounded((100, 101, 102))


def refcoco_json(root: pathlib.Path) -> Expected:
  fakes.write_json(root / "refcoco/refs(unc).json", _refs(root))
  return grounded((100, 101, 102))


def cococap_raw(root: pathlib.Path) -> Expected:
  rows = []
  for k in range(3):
    part = ("val2014", "train2014")[k == 2]
    name = f"COCO_{part}_{k:012d}.jpg"
    fakes.write_picture(root / part / name, VALUES[k])
    rows.append({"filepath": part, "filename": name, "cocoid": k, "split": "val"})
    rows[-1]["sentences"] = [{"raw": x, "tokens": []} for x in CAPTIONS[k]]
  fakes.write_json(root / "dataset_coco.json", {"images": [*rows, rows[0] | {"split": "test"}]})
  want = want_of(range(3), question=[""] * 3, references=CAPTIONS)
  return [want[2], want[0], want[1]]  # By folder.


def cococap_official(root: pathlib.Path) -> Expected:
  images, said = [], []
  for k in range(3):
    name = f"{k:012d}.jpg"
    fakes.write_picture(root / "val2017" / name, VALUES[k])
    images.append({"id": k, "file_name": name})
    said += [{"image_id": k, "caption": x} for x in CAPTIONS[k]]
  content = {"images": images, "annotations": said}
  fakes.write_json(root / "annotations/captions_val2017.json", content)
  return want_of(range(3), question=[""] * 3, references=CAPTIONS)


def mme_raw(root: pathlib.Path) -> Expected:
  want = []
  for n, part in enumerate((*raw_choice.MME_PERCEPTION, *raw_choice.MME_COGNITION)):
    apart = n % 2  # Both forms of the release.
    image = root / part / ("images/7.jpg" if apart else "7.png")
    fakes.write_picture(image, 40 + n)
    text = root / part / ("questions_answers_YN/7.txt" if apart else "7.txt")
    text.parent.mkdir(parents=True, exist_ok=True)
    text.write_text("Is it? Please answer yes or no.\tYes\nIs it not?\tNo\n")
    for k in range(2):
      key = f"{part}/{image.name}"
      want.append({"item_id": f"{key}/{k}", "values": [40 + n], "group": key, "category": part})
      want[-1]["references"] = (("Yes",), ("No",))[k]
  return want


def seedbench_raw(root: pathlib.Path) -> Expected:
  rows = []
  for k in range(3):
    (root / "SEED-Bench-image").mkdir(parents=True, exist_ok=True)
    (root / "SEED-Bench-image" / f"d{IMAGES[k]}").write_bytes(fakes.picture(VALUES[k]))
    rows.append(
      {"answer": "B", **{f"choice_{x}": f"{x}!" for x in "abcd"}, "data_id": f"d{IMAGES[k]}"}
    )
    rows[-1] |= {"data_type": "image", "question": ASKED[k], "question_id": str(k)}
    rows[-1] |= {"question_type_id": 1}
  rows.append(rows[0] | {"data_type": "video", "data_id": "film.mp4"})
  content = {"questions": rows, "question_type": {"Scene Understanding": 1}}
  fakes.write_json(root / "SEED-Bench.json", content)
  return want_of(
    range(3),
    question=ASKED,
    answer=[1] * 3,
    category=["Scene Understanding"] * 3,
    image_key=[f"d{x}" for x in IMAGES],
  )
