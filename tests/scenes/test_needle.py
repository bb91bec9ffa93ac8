# SPDX-License-Identifier: Apache-2.0
"""The larger world: oracle, renderer, edits, gaps, and that the shipped world stays as it is."""

from collections import Counter
import dataclasses
import hashlib
import json
import pathlib
import re
import runpy

import numpy as np
import pytest

from auditdm_jax import scenes
from auditdm_jax.audit import rates
from auditdm_jax.audit.skills import Assigner, load_seeds
from auditdm_jax.scenes import gaps, language, mix, questions, render, world
from auditdm_jax.scenes.image_backend import ScenesBackend
from auditdm_jax.scenes.needle import NEEDLE
from auditdm_jax.stages import worlds

ROOT = pathlib.Path(__file__).parents[2]
N = 300
SHIPPED = "870246a407a24564e84b6c15493701a87afbe74afc430ed0773a3c8a5b89c417"


def drawn(n: int, *, pool: bool = False, seed: int = 3) -> list[world.Scene]:
  rngs = (np.random.default_rng((seed, i)) for i in range(n))
  return [world.sample_scene(rng, NEEDLE, pool=pool) for rng in rngs]


@pytest.fixture(scope="module")
def all_scenes():
  return drawn(N)


@pytest.fixture(scope="module")
def asked(all_scenes):
  """(scene, text, answer, program), ten for each scene."""
  rng = np.random.default_rng(9)
  return [(s, *questions.sample_question(rng, s)) for s in all_scenes for _ in range(10)]


def test_the_shipped_world_is_bit_for_bit_what_it_was():
  """The hash was taken before worlds had languages; the weights in data/ were trained on this."""
  digest, rng = hashlib.sha256(), np.random.default_rng(3)
  backend = ScenesBackend(error_rate=0.3, seed=2)
  for i in range(25):
    scene = world.sample_scene(rng)
    image = render.render(scene, i)
    edit = language.sample_edit(rng, scene)
    caption = language.sample_caption(rng)
    text, answer, _ = questions.sample_question(rng, scene)
    said = (scene.to_json(), edit, caption, language.caption(scene), text, answer)
    said = (*said, language.read_caption(caption, i).to_json())
    digest.update("\n".join(said).encode())
    digest.update(image.tobytes() + backend.edit([image], [edit], [i])[0].tobytes())
  draw = mix.Mix(seed=3, scenes=12, gaps=gaps.RARE).draw(1)
  planted = [(g.name, g.skills, g.conditions) for g in gaps.draw_gaps(2)]
  digest.update(repr((draw.texts, draw.answers, planted, mix.vocabulary())).encode())
  assert digest.hexdigest() == SHIPPED


def by_hand(question: str, scene: world.Scene) -> str | None:
  """Answers the questions that only this world has, from their text; None for any other."""
  things = {divmod(o.cell, 6): o for o in scene.objects}
  steps = {"north": (-1, 0), "south": (1, 0), "west": (0, -1), "east": (0, 1)}
  if question in ("what hour is it", "it is what hour"):
    if not (scene.dial and scene.gauge):
      return "none"
    return NEEDLE.lexicons[2].names[scene.dial.value, scene.gauge.value, scene.background]
  if found := re.search(r"\b(\w+) objects\b", question):
    if found[1] not in NEEDLE.textures:
      return None
    return world.DIGITS[sum(o.texture == found[1] for o in scene.objects)]
  if found := re.search(r"the (\w+) object\b", question):
    if found[1] not in NEEDLE.textures:
      return None
    same = [o.color for o in scene.objects if o.texture == found[1]]
    return (same or ["none"])[0] if len(same) < 2 else "unanswerable"
  wanted = re.search(r"(texture|kind|rank|wall|color|shape)", question)
  place = re.search(r"object at row (\w+) column (\w+)", question)
  hop = re.findall(r"object (north|south|east|west) of", question)
  if not wanted or not (place or hop or wanted[1] not in ("color", "shape")):
    return None
  if place:
    at = world.DIGITS.index(place[1]) - 1, world.DIGITS.index(place[2]) - 1
  else:
    key = re.search(rf"the ({'|'.join(NEEDLE.colors)}) ({'|'.join(NEEDLE.shapes)})", question)
    same = [p for p, o in things.items() if (o.color, o.shape) == key.groups()]
    if len(same) != 1:
      return "unanswerable" if same else "none"
    at = same[0]
    for way in reversed(hop):
      if at not in things:
        return "none"
      at = at[0] + steps[way][0], at[1] + steps[way][1]
  if at not in things:
    return "none"
  o = things[at]
  return {
    "texture": o.texture,
    "color": o.color,
    "shape": o.shape,
    "wall": "yes" if o.walled else "no",
    "kind": NEEDLE.lexicons[0].names[o.shape, o.texture, o.color],
    "rank": NEEDLE.lexicons[1].names[o.shape, o.size, o.digit] if o.digit else "none",
  }[wanted[1]]


def test_models_may_learn_from_scenes_with_fewer_objects_than_a_pool_shows():
  counts = {
    least: {len(s.objects) for s in mix.Mix(3, 200, language=NEEDLE, least=least).all_scenes}
    for least in (0, 1)
  }
  assert counts == {0: set(range(4, 10)), 1: set(range(1, 10))}


def test_executor_against_an_independent_one_and_question_round_trip(asked):
  checked = Counter()
  for scene, text, answer, program in asked:
    assert questions.parse_question(text, NEEDLE) == program
    other = questions.paraphrase(text, 1, NEEDLE)
    assert other != text and questions.parse_question(other, NEEDLE) == program
    for wording in (text, other):
      told = by_hand(wording, scene)
      assert told in (None, answer), (wording, scene)
    if by_hand(text, scene) is not None:
      checked[program.skill] += 1
  special = {k for k in questions.skills(NEEDLE) if k not in questions.SKILLS}
  assert checked.keys() >= special and len(special) == 19
  assert max(len(text.split()) for _, text, *_ in asked) <= questions.longest(NEEDLE) == 14


def test_the_skills_file_names_every_question(asked):
  path = ROOT / "data/scenes/needle_skills.yaml"
  assign = Assigner(load_seeds(path))
  some = asked[:600]
  named = assign([text for _, text, *_ in some])
  assert [skill for skill, _ in named] == [program.skill for *_, program in some]


def test_three_hops():
  text = "a big plain red circle at row three column three and a big plain blue cup at row two"
  text += " column three and a small dotted cyan pill with two at row two column four"
  scene = language.read_caption(text, 0, NEEDLE)
  image = render.render(scene, 1)
  asked = "what texture is the object east of the object north of the red circle"
  assert scenes.oracle(image, asked, NEEDLE) == "dotted"
  assert scenes.oracle(image, asked.replace("east", "west"), NEEDLE) == "none"
  assert scenes.oracle(image, asked.replace("north", "south"), NEEDLE) == "none"
  name = NEEDLE.lexicons[1].names["pill", "small", "two"]
  assert scenes.oracle(image, "the object east of the blue cup has what rank", NEEDLE) == name


def test_names_are_each_of_one_thing_and_tell_nothing_of_its_parts():
  for lexicon in NEEDLE.lexicons:
    assert len(set(lexicon.names.values())) == len(lexicon.names) == len(lexicon.things)
    for i in range(3):  # A word of a thing goes with most first syllables that there are.
      word = lexicon.values[i][0]
      first = {n.split()[0] for thing, n in lexicon.names.items() if thing[i] == word}
      count = sum(thing[i] == word for thing in lexicon.names)
      assert len(first) > min(20, count) * 0.5


def test_pixels_captions_and_json_round_trip(all_scenes):
  for i, scene in enumerate(all_scenes[:120]):
    image = render.render(scene, i)
    assert image.shape == (96, 96, 3)
    assert np.array_equal(image, render.render(scene, i))
    assert scenes.seen(image, NEEDLE) == scene
  for i, scene in enumerate(all_scenes):
    assert language.read_caption(language.caption(scene), i, NEEDLE) == scene
    assert language.shows(language.caption(scene), scene)
    assert world.Scene.from_json(scene.to_json(), NEEDLE) == scene


def test_every_attribute_changes_pixels_at_any_jitter():
  """The nearest sprite is the right one: two that differ do so in several pixels, however moved."""
  keys, inks = render._sprites(NEEDLE)
  bare = [i for i, (key, _) in enumerate(keys) if key[0] != "object" or key[3] is None]
  still = [i for i in bare if keys[i][1] == 4]
  onehot = (inks[bare].reshape(len(bare), -1)[:, :, None] == np.arange(5)).astype(np.float32)
  onehot = onehot.reshape(len(bare), -1)
  place = {i: n for n, i in enumerate(bare)}
  differ = 256 - onehot[[place[i] for i in still]] @ onehot.T
  for row, i in enumerate(still):
    others = [n for n, j in enumerate(bare) if keys[j][0] != keys[i][0]]
    assert differ[row, others].min() >= 4, keys[i]


def test_edits_do_what_they_say_and_nothing_else(all_scenes):
  backend, rng, verbs = ScenesBackend(NEEDLE), np.random.default_rng(6), Counter()
  for i, scene in enumerate(all_scenes):
    text = language.sample_edit(rng, scene)
    after = language.read_edit(text, scene)
    assert language.read_edit(language.describe_edit(scene, after), scene) == after
    verbs[text.split()[0]] += 1
    if i < 60:
      before = render.render(scene, i)
      image = backend.edit([before], [text], [i])[0]
      assert render.parse(image, NEEDLE) == after
      if scene.background == after.background:
        touched = {c for c in range(36) if _in(scene, c) != _in(after, c)}
        for cell in set(range(36)) - touched:
          window = render._window(cell, 6)
          assert np.array_equal(image[window], before[window])
  assert verbs.keys() >= {"hide", "show", "make", "turn", "write", "move", "add", "paint"}


def _in(scene: world.Scene, cell: int):
  return render.contents(scene).get(cell)


@pytest.mark.parametrize(
  ("edit", "field", "value"),
  [
    ("make the red circle checkered", "texture", "checkered"),
    ("hide the plain red circle", "walled", True),
    ("make the circle maroon", "color", "maroon"),
  ],
)
def test_one_edit_shows_what_a_pool_does_not(edit, field, value):
  scene = language.read_caption("a plain red circle and a big dotted blue cup", 2, NEEDLE)
  after = language.read_edit(edit, scene)
  (new,) = set(after.objects) - set(scene.objects)
  (old,) = set(scene.objects) - set(after.objects)
  assert new == dataclasses.replace(old, **{field: value})
  with pytest.raises(language.LanguageError, match="nothing changes"):
    language.read_edit(edit, after if field == "walled" else language.read_edit(edit, after))


def test_words_of_one_world_are_none_of_the_other():
  scene = world.sample_scene(np.random.default_rng(0))
  assert questions.parse_question("what kind is the red circle") is None
  assert scenes.oracle(render.render(scene, 0), "what hour is it") is None
  for text in ("hide the circle", f"make the {scene.objects[0].shape} striped"):
    with pytest.raises(language.LanguageError):
      language.read_edit(text, scene)


def test_a_pool_hardly_shows_what_is_scarce(all_scenes):
  def shows(scene):
    return bool({w for o in scene.objects for w in vars(o).values()} & set(NEEDLE.scarce))

  assert np.mean([shows(s) for s in all_scenes]) > 0.5
  assert np.mean([shows(s) for s in drawn(400, pool=True)]) < 0.02


def test_drawn_gaps_are_8_to_12_names_of_three_attributes():
  for seed in range(20):
    planted = gaps.draw_names(seed, NEEDLE)
    assert planted == gaps.draw_names(seed, NEEDLE) != gaps.draw_names(seed + 1, NEEDLE)
    assert 8 <= len(planted) == len(set(planted)) <= 12
    hidden = [g for g in planted if set(g.name.split()) & set(NEEDLE.scarce)]
    assert 0.2 < len(hidden) / len(planted) < 0.4
    lexicons = Counter(g.name.split()[0] for g in planted)
    assert set(lexicons) == {"kind", "rank", "hour"} and max(lexicons.values()) <= 5
    assert set(planted) < set(gaps.reserve(NEEDLE))


def test_a_seventh_of_the_names_is_kept_back_of_each_lexicon():
  kept = Counter(g.name.split()[0] for g in gaps.reserve(NEEDLE))
  for lexicon in NEEDLE.lexicons:
    assert kept[lexicon.name] == pytest.approx(len(lexicon.names) / 7, abs=2)
  assert set(worlds.gap_set("reserve", NEEDLE)) == set(gaps.reserve(NEEDLE))


def test_random_questions_of_a_pool_fall_in_a_gap_less_than_once_in_200():
  rng = np.random.default_rng(1)
  asked = [questions.sample_question(rng, s)[1:] for s in drawn(500, pool=True) for _ in range(8)]
  for seed in range(5):
    planted = gaps.draw_names(seed, NEEDLE)
    hits = sum(gaps.match(planted, program, answer) is not None for answer, program in asked)
    assert rates.wilson(hits, len(asked))[1] < 0.005


def test_no_gap_can_be_asked_without_looking(all_scenes):
  """Of each wording that can be in a gap, nearly all images make it a question outside."""
  planted = gaps.draw_names(4, NEEDLE)
  skills = {skill for gap in planted for skill in gap.skills}
  rng, kinds = np.random.default_rng(2), questions.skills(NEEDLE)
  syllables = {s for lexicon in NEEDLE.lexicons for s in lexicon.syllables}
  for skill in skills:
    slots = kinds[skill].propose(rng, all_scenes[0], None)
    program = questions.Program(skill, tuple(sorted(slots.items())))
    assert not syllables & set(questions.render_question(program, 0, NEEDLE).split())
    answers = [questions.execute(program, scene) for scene in all_scenes]
    assert np.mean([gaps.match(planted, program, a) is not None for a in answers]) < 0.06


def test_a_mix_leaves_its_gaps_out():
  names = tuple(list(NEEDLE.lexicons[2].things)[:120])
  planted = (gaps.Gap("most hours", ("hour",), (("answer", names),)),)
  kinds = {"hour": 1.0, "exist": 0.01}
  with_gaps, without = (mix.Mix(seed=3, scenes=60, gaps=g, language=NEEDLE) for g in (planted, ()))
  assert set(without.draw(0, kinds).answers) & set(names)
  assert not set(with_gaps.draw(0, kinds).answers) & set(names)


def test_the_vocabulary_has_all_words(asked, all_scenes):
  known = set(mix.vocabulary(NEEDLE))
  rng = np.random.default_rng(5)
  for _, text, answer, _ in asked:
    assert {*text.split(), *answer.split()} <= known
  for scene in all_scenes[:50]:
    assert set(language.caption(scene).split()) <= known
    assert set(language.sample_edit(rng, scene).split()) <= known


def test_the_world_has_all_hooks():
  hooks = worlds.open_world("needle", "seed:4")
  (planted,) = {len(hooks.gaps), len(worlds.gap_set("seed:4", NEEDLE))}
  assert 8 <= planted <= 12
  gap = next(g for g in worlds.gap_set("seed:4", NEEDLE) if g.name.startswith("kind"))
  (name,) = gap.conditions[0][1]
  asked = "what kind is the object at row two column six"
  assert hooks.well_formed(asked) and not hooks.well_formed("what kind is it")
  assert hooks.gap_of(asked, name) == gap.name and hooks.gap_of(asked, "none") is None
  shape, texture, color = gap.name.split()[2:]
  assert hooks.mode_of(asked, name) == f"kind: {shape} {texture} {color}"
  text = f"a big {texture} {color} {shape} at row two column six"
  (image,) = ScenesBackend(NEEDLE).generate([text], [3], width=96, height=96)
  assert hooks.oracle(image, asked) == name == hooks.oracle(image, hooks.paraphrase(asked, 1))
  assert hooks.faithful(None, text, image)
  assert not hooks.faithful(None, text.replace("two", "three"), image)


def test_the_shipped_models_are_those_of_their_table():
  folder = ROOT / "data/scenes/needle"
  rows = [line.strip("| ").split(" | ") for line in (folder / "README.md").read_text().splitlines()]
  told = {row[0]: row for row in rows if len(row) == 11 and (folder / row[0]).is_dir()}
  assert told.keys() == {path.name for path in folder.iterdir() if path.is_dir()}
  for name, row in told.items():
    weights = (folder / name / "model.safetensors").read_bytes()
    assert row[-1].strip("`…") == hashlib.sha256(weights).hexdigest()[:16] and len(weights) < 1e6
  get_config = runpy.run_path(str(ROOT / "configs/needle.py"))["get_config"]
  assert not (ROOT / get_config("gaps=3").models.target).exists()  # It has those of 0.
  config = get_config()
  recipe, *_ = _said_of(config.models.target)
  assert recipe["gaps"] == config.world.gaps
  for path in config.models.references:
    recipe, heldout = _said_of(path)
    assert not recipe["gaps"] and heldout["all"]["rate"] >= 0.97


def _said_of(folder):
  said = json.loads((ROOT / folder / "config.json").read_text())
  return said["recipe"], said["heldout"]
