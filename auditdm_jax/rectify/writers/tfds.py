# SPDX-License-Identifier: Apache-2.0
"""Writes an export as a TFDS data set, prepared already, with the builder that made it.

  auditdm_failures_dataset_builder.py   the builder, which needs nothing of this package
  rows.jsonl, images/                   what it reads
  auditdm_failures/1.0.0/               the data set, in array_record files

`tfds.load("auditdm_failures", data_dir=FOLDER)` and `tfds.builder_from_directory` read it, and so
does `config.pool`. An example is an image with all that is asked about it.
"""

from collections.abc import Mapping
import importlib.util
import pathlib
import shutil
import sys
from typing import Any

from tensorflow_datasets.core import registered

from auditdm_jax.rectify import export
from auditdm_jax.rectify.export import Exported

NAME = "auditdm_failures"
_BUILDER = pathlib.Path(__file__).with_name("tfds_builder.py")


def write(folder: pathlib.Path, exported: Exported) -> Mapping[str, Any]:
  """Writes the files of the format into a folder."""
  export.write_images(folder / "images", exported.rows, exported.load)
  by_image: dict[str, dict[str, Any]] = {}
  for row in exported.rows:
    empty = {
      "split": row.split,
      "image": row.image,
      "image_id": row.sourced.example.image_id,
      "source_image_id": row.sourced.source_image,
      **{key: [] for key in ("ids", "questions", "answers")},
    }
    asked = by_image.setdefault(row.image, empty)
    asked["ids"].append(row.row_id)
    asked["questions"].append(row.question)
    asked["answers"].append(row.label)
  export.write_jsonl(folder / "rows.jsonl", by_image.values())
  program = folder / f"{NAME}_dataset_builder.py"
  shutil.copyfile(_BUILDER, program)
  _prepare(program)
  shutil.rmtree(folder / "downloads", ignore_errors=True)  # TFDS makes it for what it never needs.
  return {}


def _prepare(program: pathlib.Path) -> None:
  """Runs the copied builder, as whoever gets the folder would."""
  spec = importlib.util.spec_from_file_location(f"{NAME}_dataset_builder", program)
  if spec is None or spec.loader is None:
    raise ImportError(f"{program} cannot be loaded")
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module  # TFDS looks its builder's module up.
  writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
  try:
    with registered.skip_registration():  # A second export in this process has the same name.
      spec.loader.exec_module(module)
    module.prepare(program.parent)
  finally:
    sys.dont_write_bytecode = writes
    sys.modules.pop(spec.name, None)
