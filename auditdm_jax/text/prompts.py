# SPDX-License-Identifier: Apache-2.0
"""Prompt templates: where the image, the text and the special tokens of a model's prompt go.

A template is a string in the model's config.json. `{image}` stands for the image slots, `{text}`
for the text, specials are written out, and all else is literal text.
"""

import functools
import re

from auditdm_jax.core.config import UserError
from auditdm_jax.text.tokenizer import Tokenizer

# big_vision's order: image, BOS, prefix, separator; the model's reply is the suffix.
PALIGEMMA = "{image}<bos>{text}\n"
# One user turn of the Gemma 3 chat template, image first, as its processor spells it out.
GEMMA3 = (
  "<bos><start_of_turn>user\n"
  "\n\n<start_of_image>{image}<end_of_image>\n\n"
  "{text}<end_of_turn>\n<start_of_turn>model\n"
)
# What the word-level models of the scenes world are trained on.
GEMMA3_PLAIN = "<bos><start_of_image>{image}<end_of_image>{text}\n"


def render(tokenizer: Tokenizer, template: str, text: str, num_image_tokens: int) -> list[int]:
  """Returns the ids of a prompt.

  Specials are recognised in the template only, never in `text`; each run between two specials is
  encoded as one string, so that pieces merge across the border of template and text.

  Raises:
    UserError: the template has not one `{text}` and at most one `{image}`, or the tokenizer lacks
      one of its specials.
  """
  ids: list[int] = []
  for kind, part in _parse(template, tokenizer.specials):
    if kind == "image":
      ids += [tokenizer.image_id] * num_image_tokens
    elif kind == "special":
      ids.append(tokenizer.id(part))
    else:
      ids += tokenizer.encode(text.join(part.split("{text}")))
  return ids


@functools.lru_cache(maxsize=64)
def _parse(template: str, specials: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
  """Splits a template into ("special" | "image" | "plain", string) runs."""
  if template.count("{text}") != 1 or template.count("{image}") > 1:
    raise UserError(f"template {template!r}: needs one {{text}} and at most one {{image}}")
  pattern = "|".join(["{image}", *map(re.escape, sorted(specials, key=len, reverse=True))])
  runs = []
  for part in re.split(f"({pattern})", template):
    if not part:
      continue
    kind = "image" if part == "{image}" else "special" if part in specials else "plain"
    if kind == "plain" and (unknown := re.search(r"<[a-z_]+>|\{(?!text\})\w*\}", part)):
      raise UserError(
        f"template {template!r}: {unknown[0]} is neither a special token of the tokenizer nor a"
        " placeholder"
      )
    runs.append((kind, part))
  return tuple(runs)
