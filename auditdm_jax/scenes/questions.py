# SPDX-License-Identifier: Apache-2.0
"""Questions as programs, with the executor that is the oracle of this world.

A program is (skill, slots). Each skill has two surface forms (paraphrases of each other) whose
upper-case names are slots, an executor, and a proposal that draws slots for a scene. A text is a
question of a world iff it fits a form: `parse_question` and `execute` are also what checks
free-form text of an auditor. Here are the skills that all worlds have; `hops` has those of larger
ones.
"""

import functools

import numpy as np

from auditdm_jax.scenes import hops, world
from auditdm_jax.scenes.programs import (
  EXTREMES,
  NO,
  NONE,
  SUPERLATIVES,
  UNANSWERABLE,
  YES,
  Program,
  QuestionKind,
  matches,
  one,
  propose_from,
  slots_of,
)
from auditdm_jax.scenes.world import SCENES, Language, Obj, Scene, pick


def _lookup(read):
  return lambda scene, slots: one(matches(scene, slots), read)


def _at(read):
  """Executor of a look-up by row and column."""

  def run(scene, slots):
    found = scene.at(scene.language.cell_of(slots["row"], slots["column"]))
    return (read(found) or NONE) if found else NONE

  return run


def _name_at(scene: Scene, cell: int) -> str:
  found = scene.at(cell)
  if found:
    return f"{found.color} {found.shape}"
  if scene.dial and scene.dial.cell == cell:
    return "dial"
  return "gauge" if scene.gauge and scene.gauge.cell == cell else NONE


def _extreme_object(scene: Scene, slots: dict[str, str]) -> list[Obj]:
  """Returns the objects in the outermost row or column that holds any; more than one = a tie."""
  axis = {"leftmost": 1, "rightmost": 1, "highest": 0, "lowest": 0}[slots["extreme"]]
  last = slots["extreme"] in ("rightmost", "lowest")
  place = [divmod(o.cell, scene.language.grid)[axis] for o in scene.objects]
  edge = max(place) if last else min(place)
  return [o for o, p in zip(scene.objects, place, strict=True) if p == edge]


def _superlative_object(scene: Scene, slots: dict[str, str]) -> list[Obj]:
  size = "big" if slots["superlative"] == "biggest" else "small"
  return [o for o in scene.objects if o.size == size]


def _count(scene, slots):
  return world.DIGITS[len(matches(scene, slots))]


def _instrument(name: str):
  def run(scene, slots):
    found = {"dial": scene.dial, "gauge": scene.gauge}[name]
    return found.value if found else NONE

  return run


def _no_slots(rng, scene, key):
  return {}


def _lookups(language: Language) -> list[QuestionKind]:
  """Look-ups of one attribute by a key that is a place or other attributes."""
  place, color, shape = (
    propose_from(language, "row", "column"),
    propose_from(language, "color"),
    propose_from(language, "shape"),
  )
  both, digit = propose_from(language, "color", "shape"), propose_from(language, "digit")

  def cell(name, form, other, read):
    return QuestionKind(name, (form, other), _at(read), place)

  def by(name, form, other, read, propose):
    return QuestionKind(name, (form, other), _lookup(read), propose)

  return [
    cell("color_at", "what color is at row R column K", "row R column K has what color",
         lambda o: o.color),
    cell("shape_at", "what shape is at row R column K", "row R column K has what shape",
         lambda o: o.shape),
    cell("size_at", "what size is at row R column K", "row R column K has what size",
         lambda o: o.size),
    cell("digit_at", "what digit is at row R column K", "row R column K has what digit",
         lambda o: o.digit),
    QuestionKind("name_at", ("what is at row R column K", "row R column K has what"),
          lambda s, a: _name_at(s, s.language.cell_of(a["row"], a["column"])), place),
    by("color_of", "what color is the S", "the S is what color", lambda o: o.color, shape),
    by("shape_of", "what shape is the C object", "the C object is what shape",
       lambda o: o.shape, color),
    by("size_of", "what size is the C S", "the C S is what size", lambda o: o.size, both),
    by("digit_of", "what digit is on the C S", "the C S has what digit", lambda o: o.digit, both),
    by("row_of", "which row is the C S in", "the C S is in which row",
       lambda o: language.row(o.cell), both),
    by("column_of", "which column is the C S in", "the C S is in which column",
       lambda o: language.column(o.cell), both),
    by("color_of_sized", "what color is the Z S", "the Z S is what color",
       lambda o: o.color, propose_from(language, "size", "shape")),
    by("shape_of_sized", "what shape is the Z C object", "the Z C object is what shape",
       lambda o: o.shape, propose_from(language, "size", "color")),
    by("color_with", "what color is the object with digit D",
       "the object with digit D is what color", lambda o: o.color, digit),
    by("shape_with", "what shape is the object with digit D",
       "the object with digit D is what shape", lambda o: o.shape, digit),
  ]  # fmt: skip


def _relations(language: Language) -> list[QuestionKind]:
  """Extremes, comparisons, counts, existence and the instruments."""

  def extreme(name, form, other, find, read, slot, words):
    return QuestionKind(name, (form, other), lambda s, a: one(find(s, a), read),
                 lambda rng, s, key: {slot: pick(rng, words)}, keyed=False)  # fmt: skip

  def count(name, form, other, *slots):
    return QuestionKind(name, (form, other), _count, propose_from(language, *slots), bool(slots))

  return [
    extreme("extreme_color", "what color is the E object", "the E object is what color",
            _extreme_object, lambda o: o.color, "extreme", EXTREMES),
    extreme("extreme_shape", "what shape is the E object", "the E object is what shape",
            _extreme_object, lambda o: o.shape, "extreme", EXTREMES),
    extreme("size_compare", "what color is the M object", "the M object is what color",
            _superlative_object, lambda o: o.color, "superlative", SUPERLATIVES),
    count("count_all", "how many objects are there", "there are how many objects"),
    count("count_color", "how many C objects are there", "there are how many C objects", "color"),
    count("count_shape", "how many S objects are there", "there are how many S objects", "shape"),
    count("count_size", "how many Z objects are there", "there are how many Z objects", "size"),
    QuestionKind("exist", ("is there a C S", "there is a C S"),
          lambda s, a: YES if matches(s, a) else NO, propose_from(language, "color", "shape")),
    QuestionKind("exist_at", ("is row R column K empty", "row R column K is empty"),
          lambda s, a: NO if s.language.cell_of(a["row"], a["column"]) in s.occupied() else YES,
          propose_from(language, "row", "column")),
    QuestionKind("dial", ("what does the dial read", "the dial reads what"), _instrument("dial"),
          _no_slots, keyed=False),
    QuestionKind("gauge", ("how full is the gauge", "the gauge is how full"), _instrument("gauge"),
          _no_slots, keyed=False),
    QuestionKind("background", ("what color is the background", "the background is what color"),
          lambda s, a: s.background, _no_slots, keyed=False),
  ]  # fmt: skip


@functools.cache
def skills(language: Language) -> dict[str, QuestionKind]:
  """Returns all kinds of question by name."""
  kinds = _lookups(language) + _relations(language)
  if language.textures:
    kinds += hops.kinds(language)
  return {kind.name: kind for kind in kinds}


SKILLS = skills(SCENES)


@functools.cache
def _classes(language: Language) -> dict[str, frozenset[str]]:
  """word -> the slot letters it can fill."""
  out: dict[str, set[str]] = {}
  for letter, (_, words) in slots_of(language).items():
    for word in words:
      out.setdefault(word, set()).add(letter)
  return {w: frozenset(s) for w, s in out.items()}


@functools.cache
def _signatures(language: Language) -> dict[tuple, list[tuple[str, tuple[str, ...]]]]:
  """Form with every slot replaced by "*" -> the (skill, form words) that look like it."""
  out: dict[tuple, list] = {}
  for skill in skills(language).values():
    for form in skill.forms:
      words = tuple(form.split())
      key = tuple("*" if w in slots_of(language) else w for w in words)
      out.setdefault(key, []).append((skill.name, words))
  return out


def half_names(language: Language) -> dict[str, float] | None:
  """Returns weights with which half of the questions are about names; None in a world without."""
  lexicons = {lexicon.name for lexicon in language.lexicons}
  names = [skill for skill in skills(language) if skill.split("_")[0] in lexicons]
  others = len(skills(language)) - len(names)
  if not names:
    return None
  return {skill: others / len(names) if skill in names else 1.0 for skill in skills(language)}


def longest(language: Language) -> int:
  """Returns how many words the longest question has."""
  return max(len(form.split()) for kind in skills(language).values() for form in kind.forms)


def render_question(program: Program, form: int = 0, language: Language = SCENES) -> str:
  """Returns the text of a program in one of its two forms."""
  letters = {letter: name for letter, (name, _) in slots_of(language).items()}
  words = skills(language)[program.skill].forms[form].split()
  slots = dict(program.slots)
  return " ".join(slots[letters[w]] if w in letters else w for w in words)


def parse_question(text: str, language: Language = SCENES) -> Program | None:
  """Returns the program of a text, None if it fits no form; case and a final "?" do not count."""
  words = text.lower().strip().rstrip("?").split()
  classes, fixed, slot_of = _classes(language), _form_words(language), slots_of(language)
  key = tuple("*" if w in classes and w not in fixed else w for w in words)
  for skill, form in _signatures(language).get(key, ()):
    slots = {}
    for word, slot in zip(words, form, strict=True):
      if slot in slot_of:
        name, allowed = slot_of[slot]
        if word not in allowed:
          break
        slots[name] = word
    else:
      return Program(skill, tuple(sorted(slots.items())))
  return None


@functools.cache
def _form_words(language: Language) -> frozenset[str]:
  return frozenset(w for key in _signatures(language) for w in key if w != "*")


def execute(program: Program, scene: Scene) -> str:
  """The answer; `NONE` if the thing is absent, `UNANSWERABLE` if the referent is ambiguous."""
  return skills(scene.language)[program.skill].run(scene, dict(program.slots))


def sample_question(
  rng: np.random.Generator,
  scene: Scene,
  *,
  weights: dict[str, float] | None = None,
  ambiguous: float = 0.06,
  absent: float = 0.10,
) -> tuple[str, str, Program]:
  """Draws (text, answer, program) for a scene.

  Args:
    weights: weights of the skills to draw from; by default all, uniform.
    ambiguous: chance to look for a draw whose answer is `UNANSWERABLE`; others avoid it.
    absent: chance to ask about a random, mostly absent thing.
  """
  language, kinds = scene.language, skills(scene.language)
  keep_ambiguous, want_absent = rng.random() < ambiguous, rng.random() < absent
  for _ in range(8):
    name = _draw_skill(rng, kinds, weights)
    for _ in range(6):
      key = None if want_absent else _draw_key(rng, scene, name)
      program = Program(name, tuple(sorted(kinds[name].propose(rng, scene, key).items())))
      answer = execute(program, scene)
      wanted = (answer == UNANSWERABLE) == keep_ambiguous and (
        want_absent or _present(name, answer)
      )
      if wanted:
        return render_question(program, int(rng.integers(2)), language), answer, program
  return render_question(program, int(rng.integers(2)), language), answer, program


def _draw_key(rng, scene, name):
  """The object a question is about, or None for random slots (yes/no and counts need both)."""
  mixed = name.startswith(("exist", "count"))
  if not skills(scene.language)[name].keyed or (mixed and rng.random() < 0.5):
    return None
  with_digit = [o for o in scene.objects if o.digit]
  if with_digit and (
    name.endswith("_with") or (name.startswith(("digit", "rank")) and rng.random() < 0.6)
  ):
    return pick(rng, with_digit)
  return pick(rng, scene.objects)


def _present(name, answer):
  """Returns whether a draw that asks for something present found it (a scene may lack a dial)."""
  return answer != NONE or name.startswith(("digit", "rank"))


def _draw_skill(rng, kinds, weights):
  names = list(kinds) if weights is None else list(weights)
  if weights is None:
    return pick(rng, names)
  p = np.array(list(weights.values()), np.float64)
  return names[int(rng.choice(len(names), p=p / p.sum()))]


def paraphrase(text: str, k: int = 1, language: Language = SCENES) -> str:
  """Returns the same question in its other form (`k` odd) or its first wording again (`k` even)."""
  program = parse_question(text, language)
  if program is None:
    raise ValueError(f"not a question of the world {language.name}: {text!r}")
  forms = [render_question(program, f, language) for f in (0, 1)]
  normal = " ".join(text.lower().strip().rstrip("?").split())
  return forms[(forms.index(normal) + k) % 2]


def words(language: Language = SCENES) -> list[str]:
  """Returns all words of questions and answers, sorted."""
  out = {
    NONE,
    UNANSWERABLE,
    YES,
    NO,
    "dial",
    "gauge",
    *world.READINGS,
    *world.LEVELS,
    *world.BACKGROUNDS,
  }
  out |= _form_words(language) | set(_classes(language))
  for lexicon in language.lexicons:
    out.update(lexicon.syllables)
  return sorted(out)
