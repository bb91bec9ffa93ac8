# SPDX-License-Identifier: Apache-2.0
"""Writes exports as conversations: for TRL and transformers, and for LLaMA-Factory.

TRL takes what `datasets.load_dataset("imagefolder", data_dir=FOLDER)` reads:

  train/metadata.jsonl   {"id", "images_file_names", "prompt": [user turn], "completion": [answer]}
  train/HASH.png         the images; the loader makes a column `images` of them
  validation/            the same

`prompt` and `completion` are apart because SFTTrainer puts its loss on the completion then. Of one
list `messages` about images it would learn the questions as well.

LLaMA-Factory takes --dataset_dir=FOLDER --dataset=auditdm_train --eval_dataset=auditdm_val:

  dataset_info.json      both data sets
  train.json, val.json   {"messages", "images"}, "<image>" in the text where the image goes
  images/
"""

from collections.abc import Callable, Mapping
import pathlib
from typing import Any

from auditdm_jax.core import jsonio
from auditdm_jax.rectify import export
from auditdm_jax.rectify.export import Exported, ExportRow

_FOLDERS: Mapping[export.Split, str] = {"train": "train", "val": "validation"}


def write_trl(
  folder: pathlib.Path, exported: Exported, *, prompt: Callable[[str], str]
) -> Mapping[str, Any]:
  """Writes a folder for TRL's SFTTrainer and for chat templates of transformers.

  Args:
    folder: where.
    exported: what.
    prompt: question -> text of the user's turn.
  """
  for split, name in _FOLDERS.items():
    rows = exported.of(split)
    if not rows:
      continue
    export.write_images(folder / name, rows, exported.load)
    export.write_jsonl(folder / name / "metadata.jsonl", (_turns(row, prompt) for row in rows))
  return {}


def _turns(row: ExportRow, prompt: Callable[[str], str]) -> dict[str, Any]:
  text = {"type": "text", "text": prompt(row.question)}
  return {
    "id": row.row_id,
    "images_file_names": [row.image],
    "prompt": [{"role": "user", "content": [{"type": "image"}, text]}],
    "completion": [{"role": "assistant", "content": [{"type": "text", "text": row.label}]}],
  }


def write_llama_factory(
  folder: pathlib.Path, exported: Exported, *, prompt: Callable[[str], str]
) -> Mapping[str, Any]:
  """Writes a folder for LLaMA-Factory; arguments as of `write_trl`."""
  export.write_images(folder / "images", exported.rows, exported.load)
  info = {}
  for split in _FOLDERS:
    if rows := exported.of(split):
      jsonio.write_json(folder / f"{split}.json", [_messages(row, prompt) for row in rows])
      info[f"auditdm_{split}"] = {
        "file_name": f"{split}.json",
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "images": "images"},
        "tags": {
          "role_tag": "role",
          "content_tag": "content",
          "user_tag": "user",
          "assistant_tag": "assistant",
        },
      }
  jsonio.write_json(folder / "dataset_info.json", info)
  return {}


def _messages(row: ExportRow, prompt: Callable[[str], str]) -> dict[str, Any]:
  return {
    "id": row.row_id,
    "messages": [
      {"role": "user", "content": f"<image>{prompt(row.question)}"},
      {"role": "assistant", "content": row.label},
    ],
    "images": [f"images/{row.image}"],
  }
