# SPDX-License-Identifier: Apache-2.0
"""Prompt templates: where the image, the text and the special tokens of a model's prompt go.

A template is a string in the model's config.json. `{image}` stands for the slots of an image,
`{text}` for the text (`{text|trim}` without the blanks around it), specials are written out, and
all else is literal text. What stands between `{{` and `}}` around `{image}` is there once per
image, and not at all without one; without such brackets that is `{image}` alone. The model's reply
follows, up to its `terminator`.
"""

from collections.abc import Sequence
import functools
import re

from auditdm_jax.core.config import UserError
from auditdm_jax.text.tokenizer import Tokenizer

# big_vision's order: image, BOS, prefix, separator; the model's reply is the suffix.
PALIGEMMA = "{image}<bos>{text}\n"
# What Gemma 3's processor makes of <start_of_image>.
_GEMMA3_IMAGE = "{{\n\n<start_of_image>{image}<end_of_image>\n\n}}"
# One user turn of the Gemma chat template, images first.
GEMMA3 = (
  f"<bos><start_of_turn>user\n{_GEMMA3_IMAGE}{{text|trim}}<end_of_turn>\n<start_of_turn>model\n"
)
# For a decoder that was not taught turns.
PRETRAINED = f"<bos>{_GEMMA3_IMAGE}{{text}}"
# What the word-level models of the scenes world are trained on.
GEMMA3_PLAIN = "<bos><start_of_image>{image}<end_of_image>{text}\n"

_SECTION = re.compile(r"\{\{((?:(?!\}\}).)*\{image\}.*?)\}\}", re.DOTALL)
_TEXT = re.compile(r"\{text(?:\|trim)?\}")


def render(
  tokenizer: Tokenizer, template: str, text: str, num_image_tokens: int, *, images: int = 1
) -> list[int]:
  """Returns the ids of a prompt.

  Specials are recognised in the template only, never in `text`; each run between two specials is
  encoded as one string, so that pieces merge across the border of template and text.

  Args:
    tokenizer: the model's.
    template: see above.
    text: what `{text}` stands for.
    num_image_tokens: slots of one image.
    images: how many images there are.

  Raises:
    UserError: the template has not one `{text}` and at most one `{image}`, or the tokenizer lacks
      one of its specials.
  """
  ids: list[int] = []
  for kind, part in _parse(template, tokenizer.specials, images):
    if kind == "image":
      ids += [tokenizer.image_id] * num_image_tokens
    elif kind == "special":
      ids.append(tokenizer.id(part))
    else:
      words = _TEXT.sub(lambda m: text.strip() if m[0] == "{text|trim}" else text, part)
      ids += tokenizer.encode(words)
  return ids


def render_reply(tokenizer: Tokenizer, template: str, text: str, *, stop_id: int) -> list[int]:
  """Returns the ids of a reply after `render`, its terminator included: what a label teaches.

  Gemma's chat template writes a newline after the end of a turn. It is no part of the reply,
  because a model that has ended its turn says nothing more.

  Args:
    tokenizer: the model's.
    template: see above. Where it trims the text, the reply is trimmed too: so does Gemma's chat
      template with the turns of both sides.
    text: the reply; specials in it are text.
    stop_id: see `terminator`.
  """
  said = text.strip() if "{text|trim}" in template else text
  return [*tokenizer.encode(said), stop_id]


def terminator(tokenizer: Tokenizer, template: str, stop_ids: Sequence[int]) -> int:
  """Returns the id that a reply is taught to end with.

  In a template of turns that is what ends the user's turn. Gemma 3 stops at <eos> and at
  <end_of_turn>, and its files name <eos> first, but <end_of_turn> is what it was taught to say.

  Args:
    tokenizer: the model's.
    template: see above.
    stop_ids: the ids that end an answer. The first is the terminator of a template without turns.
  """
  runs = _parse(template, tokenizer.specials, 0)
  asks = next(i for i, (kind, part) in enumerate(runs) if kind == "plain" and _TEXT.search(part))
  after = {tokenizer.id(part) for kind, part in runs[asks + 1 : asks + 2] if kind == "special"}
  return next((i for i in stop_ids if i in after), stop_ids[0])


@functools.lru_cache(maxsize=64)
def _parse(template: str, specials: tuple[str, ...], images: int) -> tuple[tuple[str, str], ...]:
  """Splits a template into ("special" | "image" | "plain", string) runs."""
  if len(_TEXT.findall(template)) != 1 or template.count("{image}") > 1:
    raise UserError(f"template {template!r}: needs one {{text}} and at most one {{image}}")
  marked = template if _SECTION.search(template) else template.replace("{image}", "{{{image}}}")
  whole = _SECTION.sub(lambda m: m[1] * images, marked)
  pattern = "|".join(["{image}", *map(re.escape, sorted(specials, key=len, reverse=True))])
  runs = []
  for part in re.split(f"({pattern})", whole):
    if not part:
      continue
    kind = "image" if part == "{image}" else "special" if part in specials else "plain"
    known = _TEXT.sub("", part)
    if kind == "plain" and (unknown := re.search(r"<[a-z_]+>|\{[\w|]*\}", known)):
      raise UserError(
        f"template {template!r}: {unknown[0]} is neither a special token of the tokenizer nor a"
        " placeholder"
      )
    runs.append((kind, part))
  return tuple(runs)
