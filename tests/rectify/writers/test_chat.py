# SPDX-License-Identifier: Apache-2.0
"""Conversations have the forms that TRL and LLaMA-Factory read."""

import json

from PIL import Image

from auditdm_jax.rectify.writers import chat
from tests.rectify.exporting import PICTURES, collect


def ask(question):
  return f"{question}?"


def test_trl_reads_images_by_the_loader_of_image_folders(tmp_path):
  exported = collect()
  chat.write_trl(tmp_path, exported, prompt=ask)
  for split, name in (("train", "train"), ("val", "validation")):
    lines = (tmp_path / name / "metadata.jsonl").read_text().splitlines()
    rows = exported.of(split)
    assert len(lines) == len(rows) > 0
    for line, row in zip(map(json.loads, lines), rows):
      # The loader wants names below its folder, in a column that ends so.
      (file,) = line["images_file_names"]
      with Image.open(tmp_path / name / file) as image:
        assert image.tobytes() == PICTURES[row.sourced.example.image_id].tobytes()
      (user,), (assistant,) = line["prompt"], line["completion"]
      assert user["content"] == [{"type": "image"}, {"type": "text", "text": ask(row.question)}]
      assert assistant == {"role": "assistant", "content": [{"type": "text", "text": row.label}]}
      assert "messages" not in line  # With it SFTTrainer would learn the questions, too.


def test_without_validation_there_is_no_folder_for_it(tmp_path):
  chat.write_trl(tmp_path, collect(val_share=0), prompt=ask)
  assert [p.name for p in tmp_path.iterdir()] == ["train"]


def test_llama_factory_has_one_mark_for_each_image(tmp_path):
  exported = collect()
  chat.write_llama_factory(tmp_path, exported, prompt=ask)
  info = json.loads((tmp_path / "dataset_info.json").read_text())
  assert info.keys() == {"auditdm_train", "auditdm_val"}
  for split in ("train", "val"):
    entry = info[f"auditdm_{split}"]
    assert entry["formatting"] == "sharegpt" and entry["columns"]["images"] == "images"
    rows = json.loads((tmp_path / entry["file_name"]).read_text())
    assert len(rows) == len(exported.of(split))
    for row in rows:
      assert row["messages"][0]["content"].count("<image>") == len(row["images"]) == 1
      assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
      assert (tmp_path / row["images"][0]).is_file()
