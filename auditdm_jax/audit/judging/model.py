# SPDX-License-Identifier: Apache-2.0
"""A language model that is asked whether two answers mean the same.

It is asked in both orders, and what it says counts only if both replies agree: a model that prefers
the first answer, or always says yes to one order, decides nothing. Its prompt is made of the normal
forms of the answers, so that the outcome of a pair does not depend on which of its spellings came
first, and a resumed run is the same run.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
import dataclasses
import hashlib
import json
import re
from typing import NamedTuple, Protocol

from auditdm_jax.audit.judging.compare import Same
from auditdm_jax.core import jsonio, jsonl, runtime

PROMPT = """\
Two people answered a question about the same picture. Do their answers mean the same?
It makes no difference if one uses other words for the same thing, another spelling, or more or \
less detail than the question asks for.
It makes a difference if they name another thing, number, color, side, person or time, or if one \
of them says that it cannot tell.
Question: {question}
Answer 1: {first}
Answer 2: {second}
Do they mean the same? Reply with yes or no."""
_MAX_QUESTION = 1_000  # Characters.
_REPLY = re.compile(r"^\W*(?:(?:the )?(?:final )?answer(?: is)?\W+)?(yes|no)\b", re.IGNORECASE)


class TextModel(Protocol):
  """What a judge needs of a model; `auditdm_jax.vlm.Vlm` has it."""

  def answer(
    self, images: Sequence[None], prompts: Sequence[str], *, max_new_tokens: int
  ) -> Sequence[str | None]:
    """Greedy replies to prompts without images; None for one that was not answered."""
    ...


class Pair(NamedTuple):
  """Two normal forms, and the question they answer; `ordered` makes (a, b) and (b, a) one pair."""

  question: str
  a: str
  b: str

  def ordered(self) -> "Pair":
    return self if self.a <= self.b else Pair(self.question, self.b, self.a)

  def digest(self) -> bytes:
    """Returns 16 bytes that stand for the ordered pair: a run remembers hundreds of thousands."""
    return hashlib.blake2b(json.dumps(self.ordered()).encode(), digest_size=16).digest()


@dataclasses.dataclass
class ModelJudge:
  """A model, and what it has said so far.

  Attributes:
    model: the model.
    identity: of its weights, or of the endpoint and its revision: replies of one judge are not
      taken for another's.
    max_new_tokens: of a reply.
    kept: where replies are kept and found again, or None.
    counts: pairs asked, prompts sent, pairs undecided, and of these those without a reply.
  """

  model: TextModel
  identity: str
  max_new_tokens: int = 8
  kept: jsonl.JsonLines | None = None
  counts: Counter[str] = dataclasses.field(default_factory=Counter)

  def __post_init__(self):
    self._known: dict[bytes, Same] = {}  # By the digest of a pair.
    self._key = jsonio.canonical_hash([self.identity, PROMPT, self.max_new_tokens])
    for _, row in self.kept.iterate() if self.kept else ():
      if row["judge"] == self._key:
        pair = Pair(row["question"], row["a"], row["b"])
        self._known[pair.digest()] = Same(row["outcome"])

  def prepare(self, pairs: Iterable[Pair]) -> None:
    """Asks about the pairs that are not known yet, all at once."""
    wanted = dict.fromkeys(p.ordered() for p in pairs if p.digest() not in self._known)
    fresh = [pair for pair in wanted if len(pair.question) <= _MAX_QUESTION]
    self._known |= {p.digest(): Same.UNDECIDED for p in wanted if len(p.question) > _MAX_QUESTION}
    if not fresh:
      return
    prompts = [text for pair in fresh for text in _prompts(pair)]
    replies = self.model.answer([None] * len(prompts), prompts, max_new_tokens=self.max_new_tokens)
    if len(replies) != len(prompts):
      raise ValueError(f"the judge gave {len(replies)} replies to {len(prompts)} prompts")
    rows = []
    for pair, both in zip(fresh, zip(replies[::2], replies[1::2])):
      self._known[pair.digest()] = outcome = _outcome(both)
      self.counts["pairs"] += 1
      self.counts["undecided"] += outcome is Same.UNDECIDED
      self.counts["no reply"] += None in both
      if None not in both:  # It may be there again when the run goes on.
        rows.append({"judge": self._key, **pair._asdict(), "outcome": outcome.value})
    self.counts["prompts"] += len(prompts)
    if self.kept and runtime.is_main():
      self.kept.append(rows)

  def decide(self, pair: Pair) -> Same:
    """What the model says of a pair, which it is asked now if it was not before."""
    self.prepare([pair])
    return self._known[pair.digest()]


def read_prompt(prompt: str) -> tuple[str, str, str]:
  """The question and the two answers of a prompt of `PROMPT`."""
  lines = prompt.split("\n")[-4:-1]
  question, first, second = (line.partition(": ")[2] for line in lines)
  return question, first, second


def _prompts(pair: Pair) -> tuple[str, str]:
  question = " ".join(pair.question.split())
  return (
    PROMPT.format(question=question, first=pair.a, second=pair.b),
    PROMPT.format(question=question, first=pair.b, second=pair.a),
  )


def _outcome(replies: tuple[str | None, str | None]) -> Same:
  """What a pair's two replies say together."""
  said = [m[1].lower() if (m := _REPLY.match(reply or "")) else "" for reply in replies]
  if said[0] != said[1]:
    return Same.UNDECIDED
  return {"yes": Same.SAME, "no": Same.DIFFERENT}.get(said[0], Same.UNDECIDED)
