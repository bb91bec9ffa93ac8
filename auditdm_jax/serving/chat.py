# SPDX-License-Identifier: Apache-2.0
"""Messages to the model's own prompt.

    chat models, whose template is Gemma's      turns as in the released chat template: a system
                                                message before the first user's text, images where
                                                they stand, each text trimmed
    PaliGemma, pretrained models, own template  one message of the user: its text as it is, images
                                                where the template has them

What a template cannot say is refused: a model that was not taught turns would take a system message
or a history for a part of the question.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import itertools

from auditdm_jax.serving.errors import invalid
from auditdm_jax.serving.schema import ImagePart, Message, TextPart
from auditdm_jax.text import prompts
from auditdm_jax.text.tokenizer import Tokenizer

# A run of a prompt: ("special" | "image" | "text", string).
_Run = tuple[str, str]
_IMAGE: tuple[_Run, ...] = (
  ("text", "\n\n"),
  ("special", "<start_of_image>"),
  ("image", ""),
  ("special", "<end_of_image>"),
  ("text", "\n\n"),
)  # As `prompts.GEMMA3` has it.


@dataclasses.dataclass(frozen=True)
class Rendered:
  """A prompt: its tokens, and the URLs of the images that fill its slots, in order."""

  ids: tuple[int, ...]
  images: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Prompter:
  """Makes prompts for one model.

  Attributes:
    tokenizer: the model's.
    template: the model's, see `text.prompts`.
    slots: tokens of an image; None for a model that sees none.
  """

  tokenizer: Tokenizer
  template: str
  slots: int | None

  @property
  def has_turns(self) -> bool:
    """Whether the model was taught turns."""
    return self.template.removeprefix("<bos>") == prompts.GEMMA3.removeprefix("<bos>")

  def render(self, messages: Sequence[Message]) -> Rendered:
    """Returns the prompt of a conversation.

    Raises:
      ApiError: the template cannot say it.
      UserError: text that cannot be encoded.
    """
    images = tuple(
      part.image_url.url for m in messages for part in m.parts if isinstance(part, ImagePart)
    )
    if images and (self.slots is None or "{image}" not in self.template):
      raise invalid("this model sees no images: send text only", param="messages")
    ids = self._turns(messages) if self.has_turns else self._plain(messages, len(images))
    if not ids:
      raise invalid("the prompt is empty", param="messages")
    return Rendered(tuple(ids), images)

  def _plain(self, messages: Sequence[Message], images: int) -> list[int]:
    """Returns one question in the model's template."""
    if len(messages) > 1 or messages[0].role != "user":
      roles = ", ".join(m.role for m in messages[:8])
      raise invalid(
        f"messages of {roles}: this model was not taught turns, its prompt is"
        f" {self.template!r}; send one message of the user",
        param="messages",
      )
    texts = [part.text for part in messages[0].parts if isinstance(part, TextPart)]
    if len(texts) > 1:
      raise invalid(
        f"{len(texts)} texts in one message: this model's prompt {self.template!r} has room for"
        " one; join them as they should be read",
        param="messages",
      )
    text = texts[0] if texts else ""
    return prompts.render(self.tokenizer, self.template, text, self.slots or 0, images=images)

  def _turns(self, messages: Sequence[Message]) -> list[int]:
    """Returns a conversation as Gemma's released chat template writes it."""
    system, turns = _split_system(messages)
    for i, message in enumerate(turns):
      expected = "assistant" if i % 2 else "user"
      if message.role != expected:
        raise invalid(
          f"message {i + len(messages) - len(turns)} is of {message.role}: after an optional system"
          f" message, user and assistant take turns, so it should be of {expected}",
          param="messages",
        )
    if len(turns) % 2 == 0:
      raise invalid(
        "the last message should be of the user: the answer is a turn of its own", param="messages"
      )
    runs: list[_Run] = [("special", "<bos>")] if self.template.startswith("<bos>") else []
    for i, message in enumerate(turns):
      role = "model" if message.role == "assistant" else "user"
      runs += [("special", "<start_of_turn>"), ("text", f"{role}\n{system if i == 0 else ''}")]
      for part in message.parts:
        runs += [("text", part.text.strip())] if isinstance(part, TextPart) else _IMAGE
      runs += [("special", "<end_of_turn>"), ("text", "\n")]
    return self._encode([*runs, ("special", "<start_of_turn>"), ("text", "model\n")])

  def _encode(self, runs: Iterable[_Run]) -> list[int]:
    """As `prompts.render`: specials by name only, and text between two of them as one string."""
    ids: list[int] = []
    for kind, group in itertools.groupby(runs, key=lambda run: run[0]):
      for part in ["".join(text for _, text in group)] if kind == "text" else [p for _, p in group]:
        if kind == "text":
          ids += self.tokenizer.encode(part)
        elif kind == "special":
          ids.append(self.tokenizer.id(part))
        else:
          ids += [self.tokenizer.image_id] * (self.slots or 0)
    return ids


def _split_system(messages: Sequence[Message]) -> tuple[str, Sequence[Message]]:
  """Returns what stands before the first user's content, and the messages after it."""
  if messages[0].role not in ("system", "developer"):
    return "", messages
  parts = messages[0].parts
  if len(messages) == 1 or len(parts) != 1 or not isinstance(parts[0], TextPart):
    raise invalid(
      f"a {messages[0].role} message has one text, and a user's follows it", param="messages.0"
    )
  return f"{parts[0].text}\n\n", messages[1:]
