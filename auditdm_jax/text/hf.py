# SPDX-License-Identifier: Apache-2.0
"""What a Hugging Face folder says about prompts and answers: the template and the terminators.

Such a folder has no template of ours. It follows from the architecture and the tokenizer:

    PaliGemma                                         image, <bos>, text, newline
    others, with <start_of_turn> in the vocabulary    one user turn of Gemma's chat template
      but a tokenizer_config.json without template    <bos>, image, text: a pretrained model
    others                                            <bos>, image, text

A chat template of another form is not interpreted. To choose another template, convert the folder
to the native format and write it into config.json.
"""

import os
import pathlib
from typing import Any

from auditdm_jax.core import jsonio
from auditdm_jax.core.config import UserError
from auditdm_jax.text import prompts
from auditdm_jax.text.tokenizer import Tokenizer

_EOS = 1  # transformers' default for every Gemma.


def template(folder: str | os.PathLike, tokenizer: Tokenizer | None, *, paligemma: bool) -> str:
  """Returns the prompt template of a folder, see above."""
  if paligemma:
    chosen = prompts.PALIGEMMA
  elif tokenizer is None or ("<start_of_turn>" in tokenizer and _has_turns(pathlib.Path(folder))):
    chosen = prompts.GEMMA3
  else:
    chosen = prompts.PRETRAINED
  # A tokenizer of someone's own may do without.
  return chosen if tokenizer is None or "<bos>" in tokenizer else chosen.replace("<bos>", "")


def stop_ids(folder: str | os.PathLike) -> list[int]:
  """Returns what ends an answer: `eos_token_id` of generation_config.json, else of config.json.

  Raises:
    UserError: a file that is not JSON, or ids that are none.
  """
  folder = pathlib.Path(folder)
  config = _read(folder / "config.json")
  text = config.get("text_config") or {}
  for path, section in (
    ("generation_config.json", _read(folder / "generation_config.json")),
    ("config.json", config),
    ("config.json", text),
  ):
    found = section.get("eos_token_id")
    if found is not None:
      ids = found if isinstance(found, list) else [found]
      if not ids or not all(isinstance(i, int) and i >= 0 for i in ids):
        raise UserError(
          f"{folder / path}: eos_token_id {found!r} is neither an id nor a list of ids"
        )
      return ids
  return [_EOS]


def _has_turns(folder: pathlib.Path) -> bool:
  """Whether a chat template is there, or nothing that says that there is none."""
  if any((folder / f"chat_template.{kind}").is_file() for kind in ("jinja", "json")):
    return True
  path = folder / "tokenizer_config.json"
  return not path.is_file() or _read(path).get("chat_template") is not None


def _read(path: pathlib.Path) -> dict[str, Any]:
  """Returns the object in a JSON file, {} if there is none."""
  if not path.is_file():
    return {}
  found = jsonio.read_json(path)
  if not isinstance(found, dict):
    raise UserError(f"{path}: not a JSON object")
  return found
