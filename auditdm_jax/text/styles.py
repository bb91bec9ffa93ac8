# SPDX-License-Identifier: Apache-2.0
"""Answer styles: how a model is asked for a short answer, and how it is taken from the reply.

    plain           the question as it is; the reply is the answer
    paligemma       "answer en …", what PaliGemma is trained on; short answers, some refusals
    chat            the question and a request for a word or short phrase, or for an option's letter
    completion      "Question: … Answer:", for a decoder that was taught no turns
    bare            the question as it is; the short answer is taken from what was said

A checkpoint's origin decides (`style_for`), a native folder's config.json may say otherwise by
"style", and a run's config by `bank.styles`, where a section makes a style of one's own.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, Literal, Protocol

from auditdm_jax.core import config
from auditdm_jax.core.config import UserError, did_you_mean
from auditdm_jax.text.short import MAX_CHARS, Kind, Short, is_cut, options_of, short_answer


class Said(Protocol):
  """The reply of a model: a `RawReply`, or an endpoint's own type."""

  @property
  def text(self) -> str | None: ...

  @property
  def finish(self) -> str | None: ...

  @property
  def failure(self) -> object | None: ...

  @property
  def logprob(self) -> float | None: ...


@dataclasses.dataclass(frozen=True)
class RawReply:
  """The reply of a model.

  Attributes:
    text: what it said; None where no reply came.
    finish: "stop", "length" where it was cut, or None where that is unknown.
    failure: why no reply came; None where one did.
    logprob: log-probability of its tokens, the terminator included; None where it is unknown.
  """

  text: str | None
  finish: str | None = None
  failure: object | None = None
  logprob: float | None = dataclasses.field(default=None, compare=False)  # Rounded by the batch.


@dataclasses.dataclass(frozen=True)
class Style:
  """How a model is asked, and how its answer is taken.

  Attributes:
    name: what records and reports call it.
    prefix: text before the question.
    suffix: text after the question.
    option_suffix: the suffix where the question gives options A, B, …; "" = `suffix`.
    system: a request for a turn of its own before the question. Where a model's template has no
      such turn, it goes before the question, as in Gemma's own chat template.
    max_new_tokens: longest reply; None = the bank's.
    take: "whole", the reply as it is; "line", its first line, for a model that does not know when
      to stop; "short", the short answer in it, see `text.short`.
  """

  name: str = "own"
  prefix: str = ""
  suffix: str = ""
  option_suffix: str = ""
  system: str = ""
  max_new_tokens: int | None = None
  take: Literal["whole", "line", "short"] = "short"

  def __post_init__(self):
    if self.max_new_tokens is not None and self.max_new_tokens < 1:
      raise UserError(f"style {self.name!r}: max_new_tokens={self.max_new_tokens}, at least 1")

  def put(self, question: str, *, has_system_turn: bool = False) -> str:
    """Returns the text of the user's turn.

    Args:
      question: the question, options included.
      has_system_turn: whether the model gets `system` in a turn of its own.
    """
    suffix = self.suffix
    if self.option_suffix and options_of(question):
      suffix = self.option_suffix
    text = f"{self.prefix}{question}{suffix}"
    return f"{self.system}\n\n{text}" if self.system and not has_system_turn else text

  def short(self, reply: Said, question: str) -> Short:
    """Returns the answer in a reply."""
    if reply.text is None:
      return Short(None, _WITHOUT_TEXT.get(reply.finish, "failed"))
    if self.take == "short":
      return short_answer(reply.text, question=question, finish=reply.finish)
    text, cut = reply.text, is_cut(reply.finish)
    if self.take == "line":
      text, newline, _ = text.strip().partition("\n")
      text, cut = text.strip()[:MAX_CHARS], cut and not newline
    if cut:
      return Short(None, "truncated")
    return Short(text, "answer") if text.strip() else Short(None, "empty")


PLAIN = Style("plain", take="whole")
BARE = Style("bare")
# big_vision's transfers and the mix checkpoints; `{text}\n` of the template ends it.
PALIGEMMA = Style("paligemma", prefix="answer en ")
# The requests are LLaVA-1.5's (arXiv:2310.03744), which many later models are trained on, too.
CHAT = Style(
  "chat",
  suffix="\nAnswer the question using a single word or phrase.",
  option_suffix="\nAnswer with the option's letter from the given choices directly.",
  max_new_tokens=32,
)
COMPLETION = Style("completion", prefix="Question: ", suffix="\nShort answer:", take="line")
BUILT_IN = {s.name: s for s in (PLAIN, BARE, PALIGEMMA, CHAT, COMPLETION)}

# How replies without a text end, if that says more than that none came.
_WITHOUT_TEXT: dict[str | None, Kind] = {
  "refusal": "refusal",
  "filter": "refusal",
  "length": "thinking",
}
# PaliGemma's transfers that are trained on the question alone.
_BARE_TRANSFERS = ("docvqa", "chartqa")


def style_for(name: str, *, paligemma: bool, has_turns: bool) -> Style:
  """Returns the style of a published checkpoint; an endpoint is a chat model.

  Args:
    name: of its folder or file, which alone tells PaliGemma's transfers apart. The pretrained and
      the mix checkpoints are asked as most transfers are.
    paligemma: whether it is a PaliGemma.
    has_turns: whether its template has a user's turn.
  """
  if paligemma:
    return BARE if any(t in name.lower() for t in _BARE_TRANSFERS) else PALIGEMMA
  return CHAT if has_turns else COMPLETION


def find(style: Style | str | Mapping[str, Any], *, where: str) -> Style:
  """Returns a built-in style by name, or one's own from a section.

  Raises:
    UserError: an unknown name or key; `where` says where it stands.
  """
  if isinstance(style, Style):
    return style
  if not isinstance(style, str):
    return config.build(Style, style, name=where)
  if style not in BUILT_IN:
    raise UserError(
      f"{where}: no style {style!r}{did_you_mean(style, BUILT_IN)}; styles: {', '.join(BUILT_IN)},"
      " or a section of one's own"
    )
  return BUILT_IN[style]
