# SPDX-License-Identifier: Apache-2.0
"""Strategies: how the auditor makes a probe, which is an image and a question about it.

    name            turn 1 writes   about    then made   turn 2 writes      probe
    question        question        source   -           -                  (Q*, I)
    edit            instruction     source   I_e         question on I_e    (Q*, I_e)
    generate        caption         source   I_g         question on I_g    (Q*, I_g)
    edit-only       instruction     source   I_e         -                  (Q, I_e)
    generate-only   caption         source   I_g         -                  (Q, I_g)

Q* is the auditor's question, Q one that the data set has about the source image.

A sixth strategy is a value like these five in a module of your own, and one line of the config,
which names it by its import path: `rollout.strategies=("my_package.my_module:MY_STRATEGY",)`.
"""

from collections.abc import Callable, Iterable
import dataclasses
import functools
import re
from typing import Literal

from auditdm_jax.core.config import UserError, did_you_mean, load_object

# The paper's p_q, p_c and p_e were not published: these are ours.
ASK = (
  "You audit a vision-language model by asking it questions it is likely to get wrong. Study the"
  " image: count, read small text and dials, compare sizes, judge positions and relations, notice"
  " what is absent. Write one question about the image that is hard, yet has one short answer"
  " that anybody who looks carefully would agree on. Reply with the question only, on one line."
)
DESCRIBE = (
  "You audit a vision-language model by showing it images it is likely to misread. Starting from"
  " this image, describe a new, similar scene with elements that are deliberately hard to"
  " perceive: crowded counts, small text, unusual attributes, occlusion, look-alike objects,"
  " precise spatial relations. The description is given to an image generator, so say only what"
  " can be seen. Reply with the description only, on one line."
)
CHANGE = (
  "You audit a vision-language model by changing images so that it is likely to misread them."
  " Write one instruction to an image editor that makes one small, visible change to this image:"
  " add, remove, move, recolour or resize something, or change a number or a reading. All else"
  " stays as it is. Reply with the instruction only, on one line."
)
ASK_ABOUT_GENERATED = (
  "This image was generated from the description: {first}\nYou audit a vision-language model by"
  " asking it questions it is likely to get wrong. Write one question about what is really to be"
  " seen in the image, aimed at its hard elements, with one short answer that anybody who looks"
  " carefully would agree on. Reply with the question only, on one line."
)
ASK_ABOUT_EDITED = (
  "This image was edited by the instruction: {first}\nYou audit a vision-language model by"
  " asking it questions it is likely to get wrong. Write one question about what is really to be"
  " seen in the image, aimed at what the edit changed, with one short answer that anybody who"
  " looks carefully would agree on. Reply with the question only, on one line."
)


@dataclasses.dataclass(frozen=True)
class Malformed:
  """A reply that cannot be used: the auditor's fault, which counts as a reward of 0."""

  reason: str


_LABEL = re.compile(r"^(?:question|caption|description|instruction|edit)\s*:\s*", re.IGNORECASE)
_MARKUP = re.compile(r"</?[A-Za-z_][\w|]*>|<\|")
_QUOTES = {'"': '"', "“": "”", "`": "`"}


def one_line(text: str, max_chars: int) -> str | Malformed:
  """Returns the one line of a reply, without a leading label ("Question:") and outer quotes."""
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
  return text


@dataclasses.dataclass(frozen=True)
class Turn:
  """One reply that the auditor is asked for.

  Attributes:
    kind: what it writes, such as "question"; the config's lengths and records name it so.
    prompt: the task; in a second turn "{first}" stands for the text of the first one.
    about: the image that it looks at, the pool's or the one that was made.
    parse: (reply, longest accepted text) -> text, or why the reply cannot be used.
  """

  kind: str
  prompt: str
  about: Literal["source", "made"] = "source"
  parse: Callable[[str, int], str | Malformed] = one_line


@dataclasses.dataclass(frozen=True)
class Strategy:
  """How the auditor makes a probe.

  Attributes:
    name: as configs and records say it.
    turns: one or two; the first one looks at the source image.
    makes: what the image service does with the text of the first turn: "edit" changes the source
      image by it, "generate" draws a new image from it, "" means that no image is made.
    question: "own" for the auditor's, which its last turn writes, "data" for the data set's.
  """

  name: str
  turns: tuple[Turn, ...]
  makes: Literal["edit", "generate", ""] = ""
  question: Literal["own", "data"] = "own"

  def __post_init__(self):
    where, kinds = f"strategy {self.name!r}", [turn.kind for turn in self.turns]
    if len(self.turns) not in (1, 2):
      raise UserError(f"{where}: has {len(self.turns)} turns, expected 1 or 2")
    if self.turns[0].about != "source":
      raise UserError(f"{where}: its first turn must be about the source image")
    if self.makes not in ("edit", "generate", ""):
      raise UserError(f"{where}: makes={self.makes!r}, expected 'edit', 'generate' or ''")
    if not self.makes and any(turn.about == "made" for turn in self.turns):
      raise UserError(f"{where}: a turn is about a made image, but makes is ''")
    if self.makes and kinds[0] == "question":
      raise UserError(f"{where}: its first turn must write what the image is made from")
    asks = kinds[-1] == "question"
    if self.question not in ("own", "data") or asks != (self.question == "own"):
      raise UserError(
        f"{where}: with question={self.question!r} its last turn writes a {kinds[-1]!r}; 'own'"
        " needs a last turn of kind 'question', and 'data' one of another kind"
      )

  def task(self, number: int) -> str:
    """The config's key for the prompt of a turn: its kind, or "question-after-caption"."""
    kind = self.turns[number].kind
    return f"{kind}-after-{self.turns[0].kind}" if number else kind


_CAPTION, _INSTRUCTION = Turn("caption", DESCRIBE), Turn("instruction", CHANGE)
QUESTION = Strategy("question", (Turn("question", ASK),))
EDIT = Strategy("edit", (_INSTRUCTION, Turn("question", ASK_ABOUT_EDITED, "made")), makes="edit")
GENERATE = Strategy(
  "generate", (_CAPTION, Turn("question", ASK_ABOUT_GENERATED, "made")), makes="generate"
)
EDIT_ONLY = Strategy("edit-only", (_INSTRUCTION,), makes="edit", question="data")
GENERATE_ONLY = Strategy("generate-only", (_CAPTION,), makes="generate", question="data")
# How records call the text that the image service gets.
SERVED = {"edit": "instruction", "generate": "caption"}

BUILT_IN = (EDIT, EDIT_ONLY, GENERATE, GENERATE_ONLY, QUESTION)


@functools.lru_cache(maxsize=64)
def known(paths: tuple[str, ...] = ()) -> tuple[Strategy, ...]:
  """Returns all strategies in the order in which a step works on them.

  Those that make an image come first, since the image service is slow. Strategies whose first turns
  are of one kind stand together.

  Args:
    paths: import paths of strategies outside the package.

  Raises:
    UserError: a path names no strategy, or a name is taken.
  """
  own = [load_object(path, Strategy, where="rollout.strategies") for path in paths]
  every = (*BUILT_IN, *own)
  names = [strategy.name for strategy in every]
  if twice := [name for name in names if names.count(name) > 1]:
    raise UserError(f"rollout.strategies: two strategies are called {twice[0]!r}")
  kinds = list(dict.fromkeys(s.turns[0].kind for s in every))
  return tuple(sorted(every, key=lambda s: (not s.makes, kinds.index(s.turns[0].kind), s.name)))


def find(name: str, strategies: Iterable[Strategy]) -> Strategy:
  """Returns the strategy of this name; "edit_only" is "edit-only".

  Raises:
    UserError: there is none.
  """
  by_name = {s.name: s for s in strategies}
  wanted = name if name in by_name else name.replace("_", "-")
  if wanted not in by_name:
    raise UserError(f"rollout.prompts.{name}: unknown strategy{did_you_mean(wanted, by_name)}")
  return by_name[wanted]
