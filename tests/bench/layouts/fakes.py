# SPDX-License-Identifier: Apache-2.0
"""Small data sets in the forms that people have, written by the libraries that really write them.

Pictures are 8 x 6 pixels of one grey value, so that a test sees which one it got.
"""

import base64
from collections.abc import Mapping, Sequence
import csv
import io
import json
import pathlib
from typing import Any

from array_record.python import array_record_module
import numpy as np
from PIL import Image
import pyarrow as pa
import pyarrow.parquet as pq
from tensorboard.summary.writer.record_writer import RecordWriter
import tensorflow_datasets as tfds
from tensorflow_datasets.core.features import feature as feature_lib

WIDTH, HEIGHT = 8, 6


def picture(value: int, form: str = "PNG") -> bytes:
  out = io.BytesIO()
  Image.new("RGB", (WIDTH, HEIGHT), (value, value, value)).save(out, form)
  return out.getvalue()


def write_picture(path: pathlib.Path, value: int) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(picture(value, "PNG" if path.suffix == ".png" else "JPEG"))


def write_json(path: pathlib.Path, content: Any) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(content), encoding="utf-8")


def shown(image: np.ndarray) -> int:
  """Returns the value of a picture."""
  assert image.shape == (HEIGHT, WIDTH, 3)
  return round(float(image.mean()))


F = tfds.features
PNG, JPEG = F.Image(encoding_format="png"), F.Image(encoding_format="jpeg")


def prepare(
  root: pathlib.Path,
  name: str,
  features: Mapping[str, Any],
  splits: Mapping[str, Sequence[tuple[Any, Mapping[str, Any]]]],
  *,
  version: str = "1.0.0",
  config: str = "",
  file_format: str = "array_record",
) -> pathlib.Path:
  """Builds a data set by a builder of this class name, as big_vision's are; returns its folder."""

  def info(self):
    return tfds.core.DatasetInfo(builder=self, features=F.FeaturesDict(dict(features)))

  members = {
    "VERSION": tfds.core.Version(version),
    "BUILDER_CONFIGS": [tfds.core.BuilderConfig(name=config)] if config else [],
    "code_path": pathlib.Path(__file__),  # What TFDS looks for is not there for a test's module.
    "_info": info,
    "_split_generators": lambda self, _: {split: iter(rows) for split, rows in splits.items()},
    "_generate_examples": lambda self: iter(()),
  }
  with tfds.core.registered.skip_registration():
    fake = type(name, (tfds.core.GeneratorBasedBuilder,), members)
  # Writing a list of lists asks for TensorFlow's dtype, and would need it for nothing else.
  real = feature_lib.TensorInfo.dtype
  feature_lib.TensorInfo.dtype = property(lambda info: info.np_dtype)
  try:
    builder = fake(data_dir=root, file_format="array_record")
    builder.download_and_prepare()
  finally:
    feature_lib.TensorInfo.dtype = real
  folder = pathlib.Path(builder.data_path)
  if file_format == "tfrecord":
    _to_tfrecord(folder)
  return folder


def _to_tfrecord(folder: pathlib.Path) -> None:
  """Writes the records again in the format that TFDS writes by default, which takes TensorFlow."""
  for path in folder.glob("*.array_record-*"):
    reader = array_record_module.ArrayRecordReader(str(path))
    records = reader.read_all()
    reader.close()
    with open(str(path).replace(".array_record-", ".tfrecord-"), "wb") as file:
      writer = RecordWriter(file)
      for record in records:
        writer.write(record)
      writer.flush()
    path.unlink()
  info = folder / "dataset_info.json"
  info.write_text(
    info.read_text().replace('"fileFormat": "array_record"', '"fileFormat": "tfrecord"')
  )


def encoded(value: int, form: str = "PNG") -> io.BytesIO:
  """A picture as builders give it to TFDS without TensorFlow."""
  return io.BytesIO(picture(value, form))


def base64_of(value: int) -> str:
  return base64.b64encode(picture(value)).decode()


def write_tsv(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
  """As pandas' to_csv(sep="\\t", index=False) writes: quotes where they are needed."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("w", newline="", encoding="utf-8") as file:
    writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def cell(value: int, path: str | None = None) -> dict[str, Any]:
  """A picture as `datasets` has it."""
  return {"bytes": picture(value), "path": path}


def write_parquet(
  path: pathlib.Path, rows: Sequence[Mapping[str, Any]], *, groups: int = 2
) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path, row_group_size=groups)
