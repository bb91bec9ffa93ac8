# SPDX-License-Identifier: Apache-2.0
"""Makes a folder of images with questions.jsonl out of VQAv2's own files, for `config.pool`.

The files are those of visualqa.org/download.html and cocodataset.org, unpacked:

  V=/data/vqav2   # v2_OpenEnded_mscoco_*_questions.json, v2_mscoco_*_annotations.json, *2014/
  P="python data/vqav2/prepare.py --source=$V"
  $P --split=train2014 --output=data/vqav2/train
  $P --split=val2014 --output=data/vqav2/heldout --images=2000
  $P --split=val2014 --output=data/vqav2/fresh --images=2000 --skip=2000

The images are linked to, not copied. A question keeps the answers of all ten people.
"""

from collections.abc import Mapping
import json
import pathlib
import random
import shutil

from absl import app, flags

_SOURCE = flags.DEFINE_string("source", None, "Folder with the unpacked files.", required=True)
_SPLIT = flags.DEFINE_enum("split", None, ["train2014", "val2014"], "Which.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to make.", required=True)
_IMAGES = flags.DEFINE_integer("images", 0, "How many, in a seeded order; 0 = all.", lower_bound=0)
_SKIP = flags.DEFINE_integer("skip", 0, "How many to leave out before.", lower_bound=0)
_SEED = flags.DEFINE_integer("seed", 0, "Of the order.")


class PrepareError(ValueError):
  """Something is wrong with the files."""


def prepare(
  source: pathlib.Path, split: str, output: pathlib.Path, *, images: int, skip: int, seed: int
) -> int:
  """Makes `output` and returns the number of its images.

  Raises:
    PrepareError: a file is missing or is not what it should be, or `output` is there.
  """
  if output.exists():
    raise PrepareError(f"{output} is there already; remove it, or give another --output")
  asked = _read(source / f"v2_OpenEnded_mscoco_{split}_questions.json", "questions")
  said = _read(source / f"v2_mscoco_{split}_annotations.json", "annotations")
  answers = {row["question_id"]: [x["answer"] for x in row["answers"]] for row in said}
  by_image: dict[int, list[Mapping]] = {}
  for row in asked:
    by_image.setdefault(row["image_id"], []).append(row)
  ids = sorted(by_image)
  random.Random(seed).shuffle(ids)
  ids = ids[skip : skip + images] if images else ids[skip:]
  unfinished = output.with_name(f".{output.name}.unfinished")
  shutil.rmtree(unfinished, ignore_errors=True)
  unfinished.mkdir(parents=True)
  lines = []
  for image_id in ids:
    image = source / split / f"COCO_{split}_{image_id:012d}.jpg"
    if not image.is_file():
      raise PrepareError(
        f"{image}: no such image, but {by_image[image_id][0]['question']!r} is about it"
      )
    (unfinished / image.name).symlink_to(image.resolve())
    for row in by_image[image_id]:
      line = {"image": image.name, "question": row["question"], "id": row["question_id"]}
      lines.append(json.dumps(line | {"answer": answers[row["question_id"]]}))
  (unfinished / "questions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
  unfinished.rename(output)
  return len(ids)


def _read(path: pathlib.Path, key: str) -> list[Mapping]:
  if not path.is_file():
    raise PrepareError(f"{path} is not there; see the top of data/vqav2/prepare.py")
  rows = json.loads(path.read_text())
  if not isinstance(rows, dict) or not isinstance(rows.get(key), list):
    raise PrepareError(f"{path}: no list {key!r}: not VQAv2's file?")
  return rows[key]


def main(_: list[str]) -> None:
  try:
    count = prepare(
      pathlib.Path(_SOURCE.value),
      _SPLIT.value,
      pathlib.Path(_OUTPUT.value),
      images=_IMAGES.value,
      skip=_SKIP.value,
      seed=_SEED.value,
    )
  except PrepareError as e:
    raise SystemExit(f"prepare.py: {e}") from e
  print(f"{_OUTPUT.value}: {count} images")


if __name__ == "__main__":
  app.run(main)
