# SPDX-License-Identifier: Apache-2.0
"""How chat models would say the answers of this world: in sentences, with synonyms, with a letter.

    red             The circle is red. | It is red. | (B) red | Answer: red
    large           a synonym of "big"
    unanswerable    I cannot tell which one is meant.

The meaning stays, but for refusals. What is said depends on the seed, the speaker, the question and
the answer alone.
"""

import dataclasses

from auditdm_jax.core import streams
from auditdm_jax.core.config import check
from auditdm_jax.scenes import questions, world

SYNONYMS = {
  "big": "large",
  "small": "little",
  "gray": "grey",
  "purple": "violet",
  "none": "nothing",
  "northeast": "north-east",
  "northwest": "north-west",
  "southeast": "south-east",
  "southwest": "south-west",
  **{word: str(i) for i, word in enumerate(world.DIGITS)},
}
ABSTENTIONS = (
  "I cannot tell.",
  "I can't tell which one is meant.",
  "It is not possible to say which one you mean.",
  "unanswerable",
)
REFUSALS = ("I'm sorry, but I can't help with that.", "I cannot assist with this request.")


@dataclasses.dataclass(frozen=True)
class Voice:
  """How models talk.

  Attributes:
    sentences: share of the answers that are sentences.
    synonyms: share of the answers in which a word that has a synonym is replaced by it.
    letters: share of the other answers that come with the letter of an option.
    refusals: share of the questions that are not answered at all.
    seed: seed of all that is drawn.
  """

  sentences: float = 0.0
  synonyms: float = 0.0
  letters: float = 0.0
  refusals: float = 0.0
  seed: int = 0

  def __post_init__(self):
    names = ("sentences", "synonyms", "letters", "refusals")
    check(vars(self), "world.talk", *names, least=0.0, most=1.0)

  @property
  def talks(self) -> bool:
    return max(self.sentences, self.synonyms, self.letters, self.refusals) > 0


def say(voice: Voice, speaker: str, question: str, answer: str) -> str:
  """Returns what a speaker says instead of an answer."""
  rng = streams.rng(voice.seed, "talk", speaker, question, answer)
  refuses, replaces, tells, lists = rng.random(4) < (
    voice.refusals,
    voice.synonyms,
    voice.sentences,
    voice.letters,
  )
  if refuses:
    return world.pick(rng, REFUSALS)
  if answer == questions.UNANSWERABLE:
    return world.pick(rng, ABSTENTIONS) if tells else answer
  said = " ".join(SYNONYMS.get(w, w) for w in answer.split()) if replaces else answer
  if tells:
    return world.pick(rng, _sentences(questions.parse_question(question), answer, said))
  if lists:
    letter = world.pick(rng, "ABCD")
    return world.pick(rng, (f"({letter}) {said}", f"{letter}. {said}", f"Answer: {said}"))
  return said


def _sentences(program: questions.Program | None, answer: str, said: str) -> list[str]:
  """Returns sentences that say an answer, some of which repeat words of the question."""
  plain = [f"It is {said}.", f"The answer is {said}.", f"The answer is **{said}**."]
  if program is None or answer == questions.NONE:
    return [f"The answer is {said}.", f"**{said}**"]
  slots, skill = dict(program.slots), program.skill
  thing = " ".join(slots[k] for k in ("size", "color", "shape") if k in slots)
  if skill == "exist":
    return {
      questions.YES: [f"Yes, there is a {thing}.", f"There is a {thing} in the picture."],
      questions.NO: [f"No, there is no {thing}.", f"There is no {thing} in the picture."],
    }.get(answer, plain)
  if skill == "exist_at":
    return {
      questions.YES: ["Yes, it is empty.", "Yes, nothing is there."],
      questions.NO: ["No, it is not empty.", "No, something is there."],
    }.get(answer, plain)
  if skill.startswith("count"):
    kind = slots.get("shape") or " ".join((*slots.values(), "object"))
    plural = f"There is {said} {kind}." if answer == "one" else f"There are {said} {kind}s."
    return [plural, f"I can see {said}.", f"There are {said} in the picture."]
  if skill in ("row_of", "column_of"):
    line = skill.removesuffix("_of")
    return [f"The {thing} is in {line} {said}.", f"It is in {line} {said}."]
  if skill in ("dial", "gauge"):
    return [f"The {skill} reads {said}.", f"It reads {said}."]
  if skill == "name_at":
    return [f"There is a {said} there.", f"It is a {said}."]
  if skill == "background":
    return [f"The background is {said}.", f"It is {said}."]
  if skill.startswith(("color_of", "size_of")) and slots.get("shape"):
    return [f"The {thing} is {said}.", *plain]
  return plain
