#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tensorflow-datasets 4.9.10: SkipDecoding fails on images in a Sequence, without TensorFlow.
#
# Expected: `as_data_source(decoders={"views": SkipDecoding()})` gives the stored bytes of each image,
#   as `SkipDecoding` does for an image outside of a Sequence, or tf.data for both.
# Seen: AttributeError, since SkipDecoding has no `decode_batch_example_np`. A reader of data sets with
#   several images a row must decode all of them, or read the records itself.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  tensorflow-datasets==4.9.10 array_record==0.8.3 importlib_resources==6.5.2 pillow==12.0.0
cat >"$folder/seen.py" <<'PY'
import pathlib
import sys

from PIL import Image
import tensorflow_datasets as tfds

folder = pathlib.Path(sys.argv[1])
Image.new("RGB", (8, 8), "red").save(folder / "red.png")


class Views(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    image = tfds.features.Image(shape=(8, 8, 3))
    features = {"one": image, "views": tfds.features.Sequence(image)}
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    path = str(folder / "red.png")
    yield 0, {"one": path, "views": [path, path]}


builder = Views(data_dir=folder / "data", file_format="array_record")
builder.download_and_prepare()
skip = tfds.decode.SkipDecoding()
one = builder.as_data_source(split="train", decoders={"one": skip})[0]["one"]
try:
  builder.as_data_source(split="train", decoders={"views": skip})[0]
  seen = "the bytes"
except AttributeError as e:
  seen = str(e)
print(f"tensorflow-datasets {tfds.__version__}: one image: {type(one).__name__}; a Sequence: {seen}")
assert isinstance(one, bytes) and "decode_batch_example_np" in seen
PY
"$folder/venv/bin/python" "$folder/seen.py" "$folder"
