# SPDX-License-Identifier: Apache-2.0
"""Round trips of the scenes world: pixels, questions, captions and edits against the scene."""

from collections import Counter, OrderedDict
import dataclasses
import tracemalloc

import numpy as np
import pytest

from auditdm_jax import scenes
from auditdm_jax.scenes import gaps, language, questions, render, world
from auditdm_jax.scenes.image_backend import ScenesBackend

N = 10_000


@pytest.fixture(scope="module")
def all_scenes():
  return [world.sample_scene(np.random.default_rng((5, i))) for i in range(N)]


@pytest.fixture(scope="module")
def all_questions(all_scenes):
  """(text, answer, program) of a question about each scene."""
  rng = np.random.default_rng(9)
  return [questions.sample_question(rng, scene) for scene in all_scenes]


def test_caption_round_trip(all_scenes):
  for i, scene in enumerate(all_scenes):
    text = language.caption(scene)
    read = language.read_caption(text, i)
    assert read == scene
    assert language.caption(read) == text


def test_pixels_round_trip(all_scenes):
  for i, scene in enumerate(all_scenes[300:2000], 300):  # the others: by the edits below
    assert render.parse(render.render(scene, i)) == scene


def test_the_latest_scenes_are_parsed_once_and_no_pixels_are_kept(all_scenes, monkeypatch):
  monkeypatch.setattr(scenes, "_latest", OrderedDict())
  monkeypatch.setattr(scenes, "_KEPT", 100)
  parsed, parse = [], render.parse
  monkeypatch.setattr(render, "parse", lambda image, *more: parsed.append(1) or parse(image, *more))

  def look(i):
    assert scenes.seen(render.render(all_scenes[i], i)) == all_scenes[i]

  look(0)  # What parsing itself keeps.
  tracemalloc.start()
  for i in range(100):
    look(i)
  kept = tracemalloc.get_traced_memory()[0]
  tracemalloc.stop()
  assert kept < 100 * render.render(all_scenes[0], 0).nbytes / 4
  look(0)
  assert len(parsed) == 100
  look(100)  # In the place of 1: 0 was asked last.
  look(0)
  assert len(parsed) == 101
  look(1)
  assert len(parsed) == 102 and len(scenes._latest) == 100


def test_scene_json_round_trip(all_scenes):
  for scene in all_scenes[:500]:
    assert world.Scene.from_json(scene.to_json()) == scene


def test_edit_gives_the_rendered_scene(all_scenes):
  backend, rng = ScenesBackend(), np.random.default_rng(6)
  for i, scene in enumerate(all_scenes):
    text = language.sample_edit(rng, scene)
    after = language.read_edit(text, scene)
    assert language.read_edit(language.describe_edit(scene, after), scene) == after
    if i < 300:
      before = render.render(scene, i)
      assert render.parse(before) == scene
      image = backend.edit([before], [text], [i])[0]
      assert render.parse(image) == after


def test_edit_leaves_other_cells_untouched(all_scenes):
  scene = next(s for s in all_scenes if len(s.objects) == 3)
  o = scene.objects[0]
  image = render.render(scene, 1)
  edited = render.redraw(image, scene, _recolor(scene, o), 2)
  row, column = divmod(o.cell, 4)
  outside = np.ones((64, 64), bool)
  outside[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = False
  assert np.array_equal(image[outside], edited[outside])
  assert not np.array_equal(image, edited)


def _recolor(scene, o):
  color = next(c for c in world.COLORS if c != o.color)
  rest = tuple(x for x in scene.objects if x != o)
  return dataclasses.replace(scene, objects=(*rest, dataclasses.replace(o, color=color)))


def _brute_force(program, scene):
  """An independent executor: filters a table of everything by plain Python conditions."""
  slots = dict(program.slots)
  number = {w: i for i, w in enumerate(world.DIGITS)}
  rows = [
    dict(r=o.cell // 4, c=o.cell % 4, color=o.color, shape=o.shape, size=o.size, digit=o.digit)
    for o in scene.objects
  ]
  kind, _, by = program.skill.partition("_")
  if by == "at":
    r, c = number[slots["row"]] - 1, number[slots["column"]] - 1
    hit = [x for x in rows if (x["r"], x["c"]) == (r, c)]
    extra = {i.cell: n for i, n in ((scene.dial, "dial"), (scene.gauge, "gauge")) if i}
    if kind == "exist":
      return "no" if hit or r * 4 + c in extra else "yes"
    if kind == "name":
      return f"{hit[0]['color']} {hit[0]['shape']}" if hit else extra.get(r * 4 + c, "none")
    return (hit[0][kind] or "none") if hit else "none"
  if program.skill == "background":
    return scene.background
  if program.skill in ("dial", "gauge"):
    thing = scene.dial if program.skill == "dial" else scene.gauge
    return thing.value if thing else "none"
  if kind == "extreme":
    key, sign = {
      "leftmost": ("c", 1),
      "rightmost": ("c", -1),
      "highest": ("r", 1),
      "lowest": ("r", -1),
    }[slots["extreme"]]
    ranked = sorted(sign * x[key] for x in rows)
    hit = [x for x in rows if sign * x[key] == ranked[0]]
    return hit[0][by] if len(hit) == 1 else "unanswerable"
  if program.skill == "size_compare":
    rank = {"small": 0, "big": 1}
    want = 1 if slots["superlative"] == "biggest" else 0
    hit = [x for x in rows if rank[x["size"]] == want]
    return "none" if not hit else hit[0]["color"] if len(hit) == 1 else "unanswerable"
  hit = [x for x in rows if all(x[k] == v for k, v in slots.items())]
  if kind == "count":
    return world.DIGITS[len(hit)]
  if kind == "exist":
    return "yes" if hit else "no"
  if len(hit) != 1:
    return "none" if not hit else "unanswerable"
  if kind in ("row", "column"):
    return world.DIGITS[hit[0]["r" if kind == "row" else "c"] + 1]
  return hit[0][kind] or "none"


def test_executor_against_brute_force_and_question_round_trip(all_scenes, all_questions):
  for scene, (text, answer, program) in zip(all_scenes, all_questions, strict=True):
    assert questions.parse_question(text) == program
    other = questions.paraphrase(text)
    assert other != text and questions.parse_question(other) == program
    assert questions.execute(program, scene) == answer == _brute_force(program, scene)


def test_every_skill_and_enough_failure_modes(all_questions):
  assert len(questions.SKILLS) >= 20
  some = all_questions[:3000]
  assert len({gaps.mode_of(program, answer) for _, answer, program in some}) >= 24
  assert {program.skill for _, _, program in some} == set(questions.SKILLS)


def test_oracle_reads_pixels_and_refuses_what_has_no_answer(all_scenes):
  scene = next(s for s in all_scenes if s.dial)
  image = render.render(scene, 3)
  assert scenes.oracle(image, "What does the dial read?") == scene.dial.value
  assert scenes.oracle(image, "what is the meaning of life") is None
  twins = next(s for s in all_scenes if sum(o.shape == s.objects[0].shape for o in s.objects) > 1)
  question = f"what color is the {twins.objects[0].shape}"
  assert questions.execute(questions.parse_question(question), twins) == questions.UNANSWERABLE
  assert scenes.oracle(render.render(twins, 0), question) is None


@pytest.mark.parametrize(
  "text",
  [
    "",
    "and",
    "a",
    "a red",
    "a red circle and",
    "a red circle at row nine column one",
    "x " * 500,
    " and ".join(["a red circle"] * 7),
    "a red circle and the dial reads north and the dial reads east",
    "a red circle at row one column one and a blue ring at row one column one",
  ],
)
def test_captions_that_say_nothing_are_refused(text):
  with pytest.raises(language.LanguageError):
    language.read_caption(text, 0)


def test_edits_that_cannot_be_are_refused():
  scene = language.read_caption(
    "a big red circle at row one column one and a big red circle at row two column two", 0
  )
  for text in (
    "make the red circle blue",
    "remove the cross",
    "turn the dial to north",
    "paint it red",
    f"paint the background {scene.background}",
    "make the circle",
    "set the dial to half",
  ):
    with pytest.raises(language.LanguageError):
      language.read_edit(text, scene)


def test_backend_errors_are_seeded_and_have_the_wanted_rate():
  backend = ScenesBackend(error_rate=0.1, seed=4)
  captions = [
    "a small red circle at row one column one and a big blue ring at row two column two"
  ] * 600
  seeds = list(range(600))
  images = backend.generate(captions, seeds, width=64, height=64)
  again = backend.generate(captions, seeds, width=64, height=64)
  assert all(np.array_equal(a, b) for a, b in zip(images, again, strict=True))
  wrong = sum(
    render.parse(i) != language.read_caption(c, s)
    for i, c, s in zip(images, captions, seeds, strict=True)
  )
  assert 30 <= wrong <= 95
  assert isinstance(backend.generate(["nonsense"], [0], width=64, height=64)[0], ValueError)
  assert isinstance(backend.generate(captions[:1], [0], width=32, height=64)[0], ValueError)


def test_drawn_gaps_are_rare_and_reproducible(all_questions):
  drawn = gaps.draw_gaps(3)
  assert drawn == gaps.draw_gaps(3) != gaps.draw_gaps(4)
  assert 0.02 < _share(drawn, all_questions) < 0.11
  for seed in range(20):
    of_skills = Counter(g.skills for g in gaps.draw_gaps(seed))
    assert of_skills.total() == 8 and max(of_skills.values()) <= 2
  for gap in drawn:
    assert 0 < _share([gap], all_questions) < 0.04


def test_no_other_skill_teaches_a_drawn_answer_of_its_kind():
  """A digit that is never read aloud stays unknown only if no skill reads it."""
  for seed in range(20):
    for gap in gaps.draw_gaps(seed):
      if gap.name.startswith("digit_at is"):
        assert gap.skills == ("digit_at", "digit_of")
      if gap.name.startswith("count_all is"):
        assert set(gap.skills) == {"count_all", "count_color", "count_shape", "count_size"}


def test_target_easy_and_rare_have_the_promised_size(all_questions):
  assert 0.18 < _share(gaps.EASY, all_questions) < 0.30
  assert 0.03 < _share(gaps.RARE, all_questions) < 0.075


def _share(planted, asked):
  return np.mean([gaps.match(planted, program, answer) is not None for _, answer, program in asked])
