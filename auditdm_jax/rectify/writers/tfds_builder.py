# SPDX-License-Identifier: Apache-2.0
"""TFDS builder of failures that an audit found: images, questions, and answers to learn.

It reads rows.jsonl and images/ beside this file; auditdm_failures/ there is the data set that it
made of them. Reading it needs no builder:

  tfds.load("auditdm_failures", data_dir=FOLDER)

COMMAND, to make it again: python auditdm_failures_dataset_builder.py
"""

from collections.abc import Iterator
import json
import pathlib
import sys
from typing import Any

import tensorflow_datasets as tfds

HERE = pathlib.Path(__file__).resolve().parent
SPLITS = ("train", "val")


class Builder(tfds.core.GeneratorBasedBuilder):
  """Failures of an audit as a data set; an example is an image with all questions about it."""

  name = "auditdm_failures"
  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First version."}

  def _info(self) -> tfds.core.DatasetInfo:
    texts = tfds.features.Sequence(tfds.features.Text())
    features = tfds.features.FeaturesDict(
      {
        "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
        "image_id": tfds.features.Text(),
        "source_image_id": tfds.features.Text(),
        "ids": texts,
        "questions": texts,
        "answers": texts,
      }
    )
    return tfds.core.DatasetInfo(
      builder=self, description=__doc__, features=features, disable_shuffling=True
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
    del dl_manager
    lines = (HERE / "rows.jsonl").read_text(encoding="ascii").splitlines()
    rows = [json.loads(line) for line in lines]
    found = {split: [r for r in rows if r["split"] == split] for split in SPLITS}
    return {split: self._generate_examples(own) for split, own in found.items() if own}

  def _generate_examples(self, rows: list[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, row in enumerate(rows):
      example = {key: value for key, value in row.items() if key != "split"}
      # A path, since arrays would need TensorFlow.
      yield number, {**example, "image": str(HERE / "images" / row["image"])}


def prepare(data_dir: pathlib.Path) -> None:
  """Makes the data set in a folder, if it is not there."""
  if not sys.stderr.isatty():
    tfds.disable_progress_bar()
  Builder(data_dir=data_dir, file_format="array_record").download_and_prepare()


if __name__ == "__main__":
  prepare(HERE)
