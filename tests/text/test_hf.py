# SPDX-License-Identifier: Apache-2.0
"""Templates and terminators of Hugging Face folders."""

import json

import pytest
import tokenizers

from auditdm_jax.core.config import UserError
from auditdm_jax.text import hf, prompts
from auditdm_jax.text.backends import JsonBackend
from auditdm_jax.text.tokenizer import Tokenizer

TURNS = Tokenizer.word_level(["red"])


def bare(*specials):
  backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
  backend.add_special_tokens(list(specials))
  return Tokenizer(JsonBackend(backend))


def write(folder, **files):
  for name, value in files.items():
    (folder / f"{name}.json").write_text(json.dumps(value))


def test_template_follows_from_architecture_and_tokenizer(tmp_path):
  assert hf.template(tmp_path, TURNS, paligemma=True) == prompts.PALIGEMMA
  assert hf.template(tmp_path, TURNS, paligemma=False) == prompts.GEMMA3
  assert hf.template(tmp_path, bare("<bos>"), paligemma=False) == prompts.PRETRAINED
  assert hf.template(tmp_path, bare(), paligemma=True) == "{image}{text}\n"
  write(tmp_path, tokenizer_config={"bos_token": "<bos>"})
  assert hf.template(tmp_path, TURNS, paligemma=False) == prompts.PRETRAINED
  write(tmp_path, tokenizer_config={"chat_template": "{{ bos_token }}"})
  assert hf.template(tmp_path, TURNS, paligemma=False) == prompts.GEMMA3
  write(tmp_path, tokenizer_config={})
  (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}")
  assert hf.template(tmp_path, TURNS, paligemma=False) == prompts.GEMMA3


@pytest.mark.parametrize(
  ("name", "content"),
  [
    ("tokenizer_config.json", {"chat_template": "<|im_start|>"}),
    ("tokenizer_config.json", {"chat_template": [{"name": "a", "template": "<|im_start|>"}]}),
    ("chat_template.json", {"chat_template": "<|im_start|>"}),
    ("chat_template.jinja", "<|im_start|>"),
  ],
)
def test_a_foreign_chat_template_is_not_left_out_in_silence(tmp_path, caplog, name, content):
  (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
  assert hf.template(tmp_path, TURNS, paligemma=False) == prompts.GEMMA3
  assert "its chat template is not of Gemma's form" in caplog.text
  caplog.clear()
  gemmas = (tmp_path / name).read_text().replace("|im_start|", "start_of_turn")
  (tmp_path / name).write_text(gemmas)
  hf.template(tmp_path, TURNS, paligemma=False)
  assert not caplog.text


def test_the_end_of_a_turn_ends_an_answer_where_prompts_are_turns(tmp_path):
  end = TURNS.id("<end_of_turn>")
  write(tmp_path, config={"eos_token_id": 1})
  assert hf.stop_ids(tmp_path, TURNS, template=prompts.GEMMA3) == [1, end]
  assert hf.stop_ids(tmp_path, TURNS, template=prompts.PRETRAINED) == [1]
  assert hf.stop_ids(tmp_path, bare("<bos>"), template=prompts.GEMMA3) == [1]
  assert hf.stop_ids(tmp_path, None, template=prompts.GEMMA3) == [1]
  write(tmp_path, generation_config={"eos_token_id": [end, 1]})
  assert hf.stop_ids(tmp_path, TURNS, template=prompts.GEMMA3) == [end, 1]


def test_terminators_of_the_nearest_file(tmp_path):
  assert hf.stop_ids(tmp_path) == [1]
  write(tmp_path, config={"text_config": {"eos_token_id": 7}})
  assert hf.stop_ids(tmp_path) == [7]
  write(tmp_path, config={"text_config": {"eos_token_id": 7}, "eos_token_id": [1, 106]})
  assert hf.stop_ids(tmp_path) == [1, 106]
  write(tmp_path, generation_config={"eos_token_id": [1, 5], "top_k": 64})
  assert hf.stop_ids(tmp_path) == [1, 5]
  write(tmp_path, generation_config={"eos_token_id": "<eos>"})
  with pytest.raises(
    UserError, match="generation_config.json: eos_token_id '<eos>' is neither an id"
  ):
    hf.stop_ids(tmp_path)
  (tmp_path / "generation_config.json").write_text("{")
  with pytest.raises(UserError, match="generation_config.json: not JSON"):
    hf.stop_ids(tmp_path)
