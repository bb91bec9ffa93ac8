# SPDX-License-Identifier: Apache-2.0
"""Prompt templates: where the image, the text and the special tokens of a model's prompt go.

A template is a string in the model's config.json. `{image}` stands for the slots of an image,
`{text}` for the text (`{text|trim}` without the blanks around it), specials are written out, and
all else is literal text. What stands between `{{` and `}}` around `{image}` is there once per
image, and not at all without one; without such brackets that is `{image}` alone.
"""

import dataclasses
import functools
import re

from auditdm_jax.core.config import UserError, did_you_mean
from auditdm_jax.text.tokenizer import Tokenizer

# big_vision's order: image, BOS, prefix, separator; the model's reply is the suffix.
PALIGEMMA = "{image}<bos>{text}\n"
# What Gemma 3's processor makes of <start_of_image>.
_GEMMA3_IMAGE = "{{\n\n<start_of_image>{image}<end_of_image>\n\n}}"
# One user turn of the Gemma chat template, images first.
GEMMA3 = (
  f"<bos><start_of_turn>user\n{_GEMMA3_IMAGE}{{text|trim}}<end_of_turn>\n<start_of_turn>model\n"
)
# Of a decoder that was not taught turns.
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


# What the auditor writes first under each strategy; the two-turn strategies then ask a question.
FIRST_TURN = {
  "question": "question",
  "generate": "caption",
  "edit": "instruction",
  "generate-only": "caption",
  "edit-only": "instruction",
}
TWO_TURNS = frozenset({"generate", "edit"})

# The paper's p_q, p_c and p_e were not published: these are ours.
AUDITOR_PROMPTS = {
  "question": (
    "You audit a vision-language model by asking it questions it is likely to get wrong. Study the"
    " image: count, read small text and dials, compare sizes, judge positions and relations, notice"
    " what is absent. Write one question about the image that is hard, yet has one short answer"
    " that anybody who looks carefully would agree on. Reply with the question only, on one line."
  ),
  "caption": (
    "You audit a vision-language model by showing it images it is likely to misread. Starting from"
    " this image, describe a new, similar scene with elements that are deliberately hard to"
    " perceive: crowded counts, small text, unusual attributes, occlusion, look-alike objects,"
    " precise spatial relations. The description is given to an image generator, so say only what"
    " can be seen. Reply with the description only, on one line."
  ),
  "instruction": (
    "You audit a vision-language model by changing images so that it is likely to misread them."
    " Write one instruction to an image editor that makes one small, visible change to this image:"
    " add, remove, move, recolour or resize something, or change a number or a reading. All else"
    " stays as it is. Reply with the instruction only, on one line."
  ),
  "question-after-caption": (
    "This image was generated from the description: {first}\nYou audit a vision-language model by"
    " asking it questions it is likely to get wrong. Write one question about what is really to be"
    " seen in the image, aimed at its hard elements, with one short answer that anybody who looks"
    " carefully would agree on. Reply with the question only, on one line."
  ),
  "question-after-instruction": (
    "This image was edited by the instruction: {first}\nYou audit a vision-language model by"
    " asking it questions it is likely to get wrong. Write one question about what is really to be"
    " seen in the image, aimed at what the edit changed, with one short answer that anybody who"
    " looks carefully would agree on. Reply with the question only, on one line."
  ),
}

_LABEL = re.compile(r"^(?:question|caption|description|instruction|edit)\s*:\s*", re.IGNORECASE)
_MARKUP = re.compile(r"</?[A-Za-z_][\w|]*>|<\|")
_QUOTES = {'"': '"', "“": "”", "`": "`"}


@dataclasses.dataclass(frozen=True)
class Reply:
  """What the auditor wrote: a "question", a "caption" or an "instruction"."""

  kind: str
  text: str


@dataclasses.dataclass(frozen=True)
class Malformed:
  """A reply that cannot be used: the auditor's fault, and it counts as a reward of 0."""

  reason: str


def parse_reply(
  strategy: str, text: str, *, second: bool = False, max_chars: int = 400
) -> Reply | Malformed:
  """Reads a reply; a leading label ("Question:") and quotes around the whole are taken off.

  Args:
    strategy: one of `FIRST_TURN`.
    text: the decoded completion.
    second: whether this is the second turn, always a question.
    max_chars: longest text that is accepted.
  """
  kind = "question" if second else _first_kind(strategy)
  text = _LABEL.sub("", text.strip())
  if len(text) > 1 and _QUOTES.get(text[0]) == text[-1]:
    text = text[1:-1].strip()
  if not text:
    return Malformed("empty")
  if len(text.splitlines()) > 1:
    return Malformed("more than one line")
  if not text.isprintable():
    return Malformed("control characters")
  if len(text) > max_chars:
    return Malformed(f"longer than {max_chars} characters")
  if found := _MARKUP.search(text):
    return Malformed(f"special token or markup {found[0]!r}")
  if not re.search(r"\w", text):
    return Malformed("no word in it")
  return Reply(kind, text)


def _first_kind(strategy: str) -> str:
  if strategy not in FIRST_TURN:
    raise UserError(f"unknown strategy {strategy!r}{did_you_mean(strategy, FIRST_TURN)}")
  return FIRST_TURN[strategy]
