# SPDX-License-Identifier: Apache-2.0
"""Reads the prompt template and the terminators of a Hugging Face folder.

Such a folder has no template of ours. It follows from the architecture and the tokenizer:

    PaliGemma                                         image, <bos>, text, newline
    others, with <start_of_turn> in the vocabulary    one user turn of Gemma's chat template
      but a tokenizer_config.json without template    <bos>, image, text: a pretrained model
    others                                            <bos>, image, text

A chat template of another form is not interpreted, and a warning says so. To choose another
template, convert the folder to the native format and write it into config.json.
"""

import logging
import os
import pathlib
from typing import Any

from auditdm_jax.core import jsonio
from auditdm_jax.core.config import UserError
from auditdm_jax.text import prompts
from auditdm_jax.text.tokenizer import Tokenizer

_EOS = 1  # transformers' default for every Gemma.
_START, _END = "<start_of_turn>", "<end_of_turn>"
_UNKNOWN = "?"  # No file says whether there is a chat template.


def template(folder: str | os.PathLike, tokenizer: Tokenizer | None, *, paligemma: bool) -> str:
  """Returns the prompt template of a folder, see above."""
  chat = "" if paligemma else _chat_template(pathlib.Path(folder))
  if paligemma:
    chosen = prompts.PALIGEMMA
  elif tokenizer is None or (_START in tokenizer and chat):
    chosen = prompts.GEMMA3
  else:
    chosen = prompts.PRETRAINED
  if chat not in ("", _UNKNOWN) and _START not in chat:
    logging.warning(
      "%s: its chat template is not of Gemma's form and is left out: prompts are %r. If the model"
      " was taught other turns, convert it to the native format and write them into config.json",
      *(folder, chosen),
    )
  # A tokenizer of someone's own may do without.
  return chosen if tokenizer is None or "<bos>" in tokenizer else chosen.replace("<bos>", "")


def stop_ids(
  folder: str | os.PathLike, tokenizer: Tokenizer | None = None, *, template: str = ""
) -> list[int]:
  """Returns what ends an answer: `eos_token_id` of generation_config.json, else of config.json.

  Where prompts are turns, the end of a turn is one of them, whether the files know it or not: a
  model that was taught turns does not stop otherwise.

  Args:
    folder: the model's.
    tokenizer: its tokenizer, if there is one.
    template: how its prompts are made, see `template`.

  Raises:
    UserError: a file that is not JSON, or invalid ids.
  """
  ids = _eos_ids(pathlib.Path(folder))
  if _END in template and tokenizer is not None and _END in tokenizer:
    ids += [i for i in (tokenizer.id(_END),) if i not in ids]
  return ids


def _eos_ids(folder: pathlib.Path) -> list[int]:
  config = _read(folder / "config.json")
  text = config.get("text_config") or {}
  for path, section in (
    ("generation_config.json", _read(folder / "generation_config.json")),
    ("config.json", config),
    ("config.json", text),
  ):
    found = section.get("eos_token_id")
    if found is not None:
      ids = list(found) if isinstance(found, list) else [found]
      if not ids or not all(isinstance(i, int) and i >= 0 for i in ids):
        raise UserError(
          f"{folder / path}: eos_token_id {found!r} is neither an id nor a list of ids"
        )
      return ids
  return [_EOS]


def _chat_template(folder: pathlib.Path) -> str:
  """Returns the chat template; "" if a file says that there is none."""
  path = folder / "chat_template.jinja"
  if path.is_file():
    return path.read_text(encoding="utf-8", errors="replace") or _UNKNOWN
  path = folder / "chat_template.json"
  if path.is_file():
    return _joined(_read(path).get("chat_template")) or _UNKNOWN
  path = folder / "tokenizer_config.json"
  return _joined(_read(path).get("chat_template")) if path.is_file() else _UNKNOWN


def _joined(templates: Any) -> str:
  """Returns the text of a template. Some files have several, with names: these are joined."""
  if isinstance(templates, list):
    return "\n".join(str(x.get("template", "")) for x in templates if isinstance(x, dict))
  return templates if isinstance(templates, str) else ""


def _read(path: pathlib.Path) -> dict[str, Any]:
  """Returns the object in a JSON file, {} if there is none."""
  if not path.is_file():
    return {}
  found = jsonio.read_json(path)
  if not isinstance(found, dict):
    raise UserError(f"{path}: not a JSON object")
  return found
