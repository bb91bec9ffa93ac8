# SPDX-License-Identifier: Apache-2.0
"""Planted gaps: what a target never saw in training, as predicates on (program, answer).

A gap is a set of skills and conditions on slots or the answer; it is planted by leaving every
question it matches out of the target's training mix. `EASY` and `RARE` are the shipped targets;
`draw_gaps(seed)` plants others that nobody tuned to.
"""

from collections.abc import Iterable
import dataclasses

from auditdm_jax.core import streams
from auditdm_jax.scenes import questions, world
from auditdm_jax.scenes.needle import NEEDLE
from auditdm_jax.scenes.programs import NONE, UNANSWERABLE, Program
from auditdm_jax.scenes.world import SCENES, Language, Lexicon

KNOWN_SKILLS = tuple(questions.skills(NEEDLE))  # Those of all worlds: it has the most.
ANY = "*"  # a condition on any slot or the answer


@dataclasses.dataclass(frozen=True)
class Gap:
  """A failure mode by construction: skill x attribute.

  Attributes:
    skills: skills it concerns; () = all.
    conditions: (slot name, "answer" or `ANY`; words): all must hold.
  """

  name: str
  skills: tuple[str, ...] = ()
  conditions: tuple[tuple[str, tuple[str, ...]], ...] = ()

  def __post_init__(self):
    known = KNOWN_SKILLS
    unknown = [s for s in self.skills if s not in known]
    if unknown:
      raise ValueError(f"gap {self.name!r}: unknown skills {unknown}; known: {', '.join(known)}")

  def matches(self, program: Program, answer: str) -> bool:
    """Returns whether a question with this true answer lies in the gap."""
    if self.skills and program.skill not in self.skills:
      return False
    values = {**dict(program.slots), "answer": answer}
    for field, wanted in self.conditions:
      have = set(values.values()) | set(answer.split()) if field == ANY else {values.get(field)}
      if not have & set(wanted):
        return False
    return True


def match(gaps: Iterable[Gap], program: Program, answer: str) -> str | None:
  """Returns the name of the first gap that a question lies in, or None."""
  return next((g.name for g in gaps if g.matches(program, answer)), None)


_AT = ("color_at", "shape_at", "size_at", "digit_at", "name_at")
_COUNTS = ("count_all", "count_color", "count_shape", "count_size")
_DIGITS = ("digit_at", "digit_of", "color_with", "shape_with")

EASY = (
  Gap("counts above three", _COUNTS, (("answer", ("four", "five", "six")),)),
  Gap("anything purple", (), ((ANY, ("purple",)),)),
  Gap("digits five to nine", _DIGITS, ((ANY, world.DIGITS[5:]),)),
  Gap("the dial", ("dial",)),
  Gap("absent shapes", ("color_of", "color_of_sized"), (("answer", (NONE,)),)),
  Gap("column four", _AT, (("column", ("four",)),)),
  Gap("the lowest object", ("extreme_color", "extreme_shape"), (("extreme", ("lowest",)),)),
)

# Answers and slot values that never occur: a conjunction of values that are each known from other
# questions would be no gap, since models of this size compose them.
RARE = (
  Gap("dial reads southwest", ("dial",), (("answer", ("southwest",)),)),
  Gap("dial reads east", ("dial",), (("answer", ("east",)),)),
  Gap("dial reads north", ("dial",), (("answer", ("north",)),)),
  Gap("gauge is half", ("gauge",), (("answer", ("half",)),)),
  Gap("gauge is full", ("gauge",), (("answer", ("full",)),)),
  Gap("digit seven read", ("digit_at", "digit_of"), (("answer", ("seven",)),)),
  Gap("digit zero read", ("digit_at", "digit_of"), (("answer", ("zero",)),)),
  Gap("object with digit two", ("color_with", "shape_with"), (("digit", ("two",)),)),
  Gap("row three", ("row_of",), (("answer", ("three",)),)),
  Gap("brown background", ("background",), (("answer", ("brown",)),)),
)


# What a gap can be drawn from: skills and the answer, or the slot, of which one value is left out.
# All skills that teach a value are together, or the others would teach it.
_DRAWN = (
  (("dial",), "answer"),
  (("gauge",), "answer"),
  (("background",), "answer"),
  (("row_of",), "answer"),
  (("column_of",), "answer"),
  (("digit_at", "digit_of"), "answer"),
  (_COUNTS, "answer"),
  (("color_with", "shape_with"), "digit"),
  (("extreme_color", "extreme_shape"), "extreme"),
)


def draw_gaps(
  seed: int, *, n: int = 8, least: float = 0.0025, most: float = 0.025
) -> tuple[Gap, ...]:
  """Draws `n` gaps that a target cannot close by what it learns elsewhere.

  Args:
    seed: of the draw.
    n: how many; at most two from the same skills.
    least: smallest share of random questions that a gap may take.
    most: largest.
  """
  shares = _value_shares(streams.rng(0, "value shares"))
  options = sorted(k for k, v in shares.items() if least <= v <= most)
  left = dict.fromkeys(range(len(_DRAWN)), 2)
  chosen: list[Gap] = []
  for i in streams.rng(seed, "gaps").permutation(len(options)):
    kind, value = options[int(i)]
    if len(chosen) < n and left[kind]:
      skills, slot = _DRAWN[kind]
      left[kind] -= 1
      name = f"{skills[0]} is {value}" if slot == "answer" else f"{skills[0]} of {slot} {value}"
      chosen.append(Gap(name, skills, ((slot, (value,)),)))
  return tuple(chosen)


def _value_shares(rng, n: int = 6000) -> dict[tuple[int, str], float]:
  """(place in `_DRAWN`, value) -> share of random questions."""
  out: dict[tuple[int, str], float] = {}
  for _ in range(n // 6):
    scene = world.sample_scene(rng)
    for _ in range(6):
      _, answer, program = questions.sample_question(rng, scene)
      values = {**dict(program.slots), "answer": answer}
      for kind, (skills, slot) in enumerate(_DRAWN):
        value = values.get(slot)
        if program.skill in skills and value not in (None, NONE, UNANSWERABLE):
          out[kind, value] = out.get((kind, value), 0) + 1 / n
  return out


# One in so many names is kept back: what all targets start from never heard it.
_KEPT_BACK = 7


def draw_names(seed: int, language: Language, *, scarce: float = 0.3) -> tuple[Gap, ...]:
  """Draws 8 to 12 gaps that are names, each of three attributes, that a target never heard.

  They are of the names in `reserve`, so that all targets can start from one model.

  Args:
    seed: of the draw.
    language: whose names.
    scarce: share of the gaps that are about things that a pool's images hardly show.
  """
  rng = streams.rng(seed, "names")
  n = int(rng.integers(8, 13))
  wanted = round(scarce * n)
  hidden, shown = _kept_back(language)
  chosen = []
  for things, count in ((hidden, wanted), (shown, n - wanted)):
    # Each lexicon in turn, or the one with the most names would have nearly all gaps.
    order = [things[int(i)] for i in rng.permutation(len(things))]
    turns = {x.name: [t for t in order if t[0] is x] for x in language.lexicons}
    start = int(rng.integers(len(turns)))
    for k in range(count):
      of = list(turns.values())[(start + k) % len(turns)]
      chosen.append(of.pop())
  return tuple(_name_gap(language, *thing) for thing in chosen)


def reserve(language: Language) -> tuple[Gap, ...]:
  """Returns a gap for each name from which `draw_names` draws, about a seventh of all."""
  return tuple(_name_gap(language, *thing) for side in _kept_back(language) for thing in side)


def _kept_back(language: Language) -> tuple[list, list]:
  """Returns (lexicon, thing, name) of those that a pool hardly shows, and of the others."""
  hidden, shown = [], []
  for lexicon in language.lexicons:
    rng = streams.rng(0, "reserve", lexicon.name)
    for side, scarce in ((hidden, True), (shown, False)):
      names = [
        (lexicon, thing, name)
        for thing, name in lexicon.names.items()
        if bool(set(thing) & set(language.scarce)) is scarce
      ]
      order = rng.permutation(len(names))[: len(names) // _KEPT_BACK]
      side += [names[int(i)] for i in sorted(order)]
  return hidden, shown


def _name_gap(language: Language, lexicon: Lexicon, thing: tuple[str, ...], name: str) -> Gap:
  asked = tuple(s for s in questions.skills(language) if s.split("_")[0] == lexicon.name)
  return Gap(f"{lexicon.name} of {' '.join(thing)}", asked, (("answer", (name,)),))


def mode_of(program: Program, answer: str, language: Language = SCENES) -> str:
  """The nameable failure mode (skill x attribute) of a question: what reports group finds by."""
  for lexicon in language.lexicons:
    if program.skill.split("_")[0] == lexicon.name and answer in lexicon.things:
      return f"{lexicon.name}: {' '.join(lexicon.things[answer])}"
  slots = dict(program.slots)
  for field in ("extreme", "superlative", "digit"):
    if field in slots:
      return f"{program.skill}: {slots[field]}"
  if program.skill.startswith("count_") and slots:
    return f"{program.skill}: {next(iter(slots.values()))}"
  return f"{program.skill}: {answer.split()[0]}"
