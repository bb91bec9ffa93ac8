# SPDX-License-Identifier: Apache-2.0
"""What the stages compute by themselves; the programs they call have tests of their own."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest

from auditdm_jax.audit import judge as judge_lib
from auditdm_jax.audit import rates, taxonomy
from auditdm_jax.audit import skills as skills_lib
from auditdm_jax.audit.attempt import Again, Attempt
from auditdm_jax.audit.probe import Probe, Verdict
from auditdm_jax.core.config import UserError
from auditdm_jax.rl.batch import Trajectory
from auditdm_jax.scenes import language, questions, render, world
from auditdm_jax.scenes.mix import Mix
from auditdm_jax.stages import (
  asking,
  evaluate,
  methods,
  proposing,
  rewording,
  summarise,
  truth,
  verify,
  worlds,
)
from auditdm_jax.stages.results import Found, ModeRow
from auditdm_jax.stages.rows import RowReader
from auditdm_jax.vlm import load_vlm

ROOT = pathlib.Path(__file__).parents[2]


def _oracle(image):
  return truth.Oracle(
    worlds.open_world("scenes", "easy"), images={"i": image}.__getitem__, judge=judge_lib.Judge()
  )


def _attempt(image_id, question, target, consensus, **fields):
  probe = Probe.make(image_id, question, **fields)
  find = consensus is not None and consensus != target
  verdict = Verdict(
    probe_id=probe.probe_id,
    answers={"t": target, "r": consensus or "x"},
    target="t",
    references=("r",),
    consensus=consensus,
    agree=consensus is not None,
    disagreement=find,
    reason="disagreement" if find else "agreement",
  )
  return Attempt(probe=probe, verdict=verdict)


@pytest.fixture
def scene():
  rng = np.random.default_rng(0)
  return next(s for s in iter(lambda: world.sample_scene(rng), None) if s.dial)


def test_only_a_true_consensus_against_a_wrong_target_is_confirmed(scene):
  oracle = _oracle(render.render(scene, 0))
  right = scene.dial.value
  wrong = next(w for w in world.READINGS if w != right)
  question = "what does the dial read"

  def says(question, target, consensus):
    return oracle.truth(_attempt("i", question, target, consensus).find)

  assert says(question, wrong, right).gap == "the dial"
  assert not says(question, right, wrong).confirmed
  assert not says(question, right, right).confirmed
  assert not says("what is life", wrong, right).confirmed
  malformed = Attempt(probe=Probe.make("i", ""), verdict=None)
  r = oracle.success([_attempt("i", question, wrong, right), malformed])
  assert (r.k, r.n) == (1, 2), "a malformed reply is an attempt too"


def test_coverage_counts_unique_finds_only(scene):
  wrong = next(w for w in world.READINGS if w != scene.dial.value)
  same = [_attempt("i", "what does the dial read", wrong, scene.dial.value)] * 9
  found = _oracle(render.render(scene, 0)).confirmed(same)
  assert [(c.query, c.origin_id, c.gap) for c in found] == [(1, "i", "the dial")]
  cover = truth.coverage(found, ["the dial"], least=2)
  assert cover.confirmed == 1 and cover.gaps_found == 0 and cover.queries_to_gaps == ()
  assert truth.coverage(found, ["the dial"], least=1).queries_to_gaps == (1,)


def test_what_does_not_return_in_other_words_is_no_find_and_took_two_queries(scene):
  wrong = next(w for w in world.READINGS if w != scene.dial.value)
  once = _attempt("i", "what does the dial read", wrong, scene.dial.value)
  again = Again(question="which way does the dial point", verdict=once.verdict, returned=False)
  lost = dataclasses.replace(once, again=again)
  kept = dataclasses.replace(once, again=dataclasses.replace(again, returned=True))
  assert lost.find is None and kept.find == once.find
  found = _oracle(render.render(scene, 0)).confirmed([lost, kept, once])
  assert [c.query for c in found] == [4], "each is put to the models twice"
  assert Attempt.from_dict(lost.to_dict()) == lost


@pytest.mark.parametrize(
  ("second", "returned"),
  [
    ({"reason": "disagreement", "disagreement": True, "consensus": "RED"}, True),
    ({"reason": "disagreement", "disagreement": True, "consensus": "green"}, False),
    ({"reason": "agreement", "consensus": "red"}, False),
    ({"reason": "no consensus"}, False),
    ({"reason": "skipped"}, False),
    ({"reason": "no answer"}, None),
    ({"reason": "undecided"}, None),
  ],
  ids=str,
)
def test_a_disagreement_returns_or_not_or_nobody_can_tell(second, returned):
  first = _attempt("i", "what color is it", "blue", "red")
  plain = {"consensus": None, "disagreement": False}
  verdict = dataclasses.replace(first.verdict, **plain | second)
  bank = types.SimpleNamespace(
    judge=judge_lib.Judge(),
    verdicts=lambda images, questions, image_ids: [verdict] * len(questions),
  )
  ctx = types.SimpleNamespace(
    settings=types.SimpleNamespace(discover=types.SimpleNamespace(again=True)),
    world=types.SimpleNamespace(paraphrase=lambda question, k: f"{question} now"),
    images=None,
  )
  ctx.settings.verify = types.SimpleNamespace(paraphraser="", paraphrases=0)
  agreed = _attempt("i", "what shape is it", "cup", "cup")
  untouched, asked = rewording.Reworded(ctx, bank)([agreed, first], most=5)
  assert untouched == agreed and asked.again.returned is returned and asked.queries == 2
  assert asked.again.question == "what color is it now"
  assert (asked.find is None) == (returned is False)
  assert rewording.Reworded(ctx, bank)([first], most=0) == [first], "no query is left"


def test_the_report_says_how_many_disagreements_returned():
  once = _attempt("i", "what color is it", "blue", "red")
  told = [True, True, True, False, None]
  again = [Again(question="which color", verdict=once.verdict, returned=r) for r in told]
  swept = [dataclasses.replace(once, again=a) for a in again] + [once]
  returned = summarise._returned(swept)
  assert (returned.k, returned.n) == (3, 4), "nobody can tell of one, and one was not asked"
  assert summarise._returned([once]) is None
  sweep = types.SimpleNamespace(returned=returned)
  name, text = methods._find(types.SimpleNamespace(sweep=sweep))
  low, high = (f"{100 * x:.1f}" for x in returned.ci95)
  assert name == "Find" and f"3/4, 95\u202f% interval {low}–{high}" in text
  for none in (None, types.SimpleNamespace(returned=None)):
    assert "other words" not in methods._find(types.SimpleNamespace(sweep=none))[1]


def test_corrected_rates_count_the_verdict_on_one_wording():
  """As sensitivity and specificity do, which are measured so."""
  lost = _attempt("i", "what color is it", "blue", "red")
  again = Again(question="which color", verdict=lost.verdict, returned=False)
  attempts = [
    dataclasses.replace(lost, again=again),
    _attempt("j", "what color is it", "red", "red"),
  ]
  reader = RowReader(types.SimpleNamespace(oracle=_oracle(None)), set())
  rows = reader.rows(attempts)
  assert [(r.find, r.disagreed, r.queries, r.answers) for r in rows] == [
    (False, True, 2, 4),
    (False, False, 1, 2),
  ]
  flagged = summarise._corrected(types.SimpleNamespace(correct=lambda rate: rate), rows)
  assert (flagged.k, flagged.n) == (1, 2)


def test_attempts_survive_their_records():
  a = _attempt("i", "what does the dial read", "north", "south", strategy="edit", step=3)
  assert Attempt.from_dict(a.to_dict()) == a
  empty = Attempt(probe=Probe.make("i", ""), verdict=None)
  assert Attempt.from_dict(empty.to_dict()) == empty


def test_auditable_needs_knowing_references_and_a_failing_target():
  row = lambda k: rates.rate(k, 100)  # noqa: E731
  target = {"gap: a": row(10), "gap: b": row(90), "gap: c": row(0)}
  refs = [{"gap: a": row(99), "gap: b": row(99), "gap: c": row(30)}]
  assert evaluate.auditable(target, refs) == ("a",)


def test_mode_scores_by_the_oracle():
  def mode(confirmed, gap, status="confirmed"):
    return ModeRow(
      mode_id="m",
      name="m",
      definition="",
      skills=(),
      found=Found(9, 9),
      fresh=rates.rate(10, 20),
      confirmed=confirmed,
      gap=gap,
      gap_share=1.0,
      status=status,
      base=rates.rate(5, 100),
    )

  modes = [mode(10, "a"), mode(1, "b"), mode(20, "b", "not confirmed")]
  scores = summarise.mode_scores(modes, ["a", "b"], oracle=True)
  assert (scores.recall.k, scores.recall.n) == (1, 2)
  assert (scores.precision.k, scores.precision.n) == (1, 2)
  assert (scores.found, scores.confirmed, scores.per_gap) == (3, 2, 1.0)
  assert summarise.mode_scores(modes, [], oracle=False).precision is None


def test_choose_keeps_small_modes_whole():
  seeds = skills_lib.load_seeds(ROOT / "data/scenes/skills.yaml")
  finds = []
  for i in range(400):
    finds.append(_attempt(f"i{i}", "what does the dial read", "north", "south"))
  for i in range(12):
    finds.append(_attempt(f"j{i}", "how full is the gauge", "low", "half"))
  passed = [_attempt(f"k{i}", "how many objects are there", "two", "two") for i in range(40)]
  tax = taxonomy.discover_modes(finds + passed, seeds)
  assert len(tax.modes) == 2
  finds = [a.find for a in finds]
  modes = tax.match([f.probe.question for f in finds], [f.consensus for f in finds])
  chosen = verify.choose(finds, tax, modes, limit=40, seed=0)
  assert len(chosen) == 40
  gauges = [i for i in chosen if finds[i].probe.question == "how full is the gauge"]
  assert len(gauges) == 12 and {chosen[i] for i in gauges} == {1.0}
  assert sum(chosen.values()) == pytest.approx(412), "each stands for others of its family"
  assert chosen == verify.choose(finds, tax, modes, limit=40, seed=0)


def test_a_sweep_spends_no_query_on_what_was_asked():
  def reply(question: str, image: str = "i0") -> Trajectory:
    return Trajectory(("train",), 0, 0, "question", image, image_id=image, question=question)

  known = Probe.make("i0", "what is the digit").probe_id
  drawn = [
    reply("what is the digit"),
    reply(""),
    reply("how many"),
    reply("how many"),
    reply(""),
    reply("what is the digit", "i1"),
  ]
  kept = asking.unasked(drawn, {known})
  assert [(t.source_image_id, t.question) for t in kept] == [
    ("i0", ""),
    ("i0", "how many"),
    ("i0", ""),
    ("i1", "what is the digit"),
  ]


class Pool:
  def asked(self):
    return [(i, f"q{i}{j}") for i in range(7) for j in range(5)]


def test_the_control_of_a_seed_is_not_the_random_arm_of_another():
  def order(seed, arm):
    return asking.RandomQuestions(Pool(), seed, arm).next(35)

  orders = [order(seed, arm) for seed in range(4) for arm in (proposing.RANDOM, asking.CONTROL)]
  assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


def test_random_questions_are_never_asked_twice():
  source = asking.RandomQuestions(Pool(), 3, "random")
  asked = source.next(10)
  assert source.next(10) == asked  # Asking is not booking: a batch may be asked again.
  source.skip(10)
  asked += source.next(25)
  assert len(set(asked)) == 35 == len(source)


def test_proposals_of_the_data_set_begin_again_after_the_last_one():
  source = asking.RandomQuestions(Pool(), 3, "random")
  asked = [pair for batch in range(4) for pair in source.around(batch * 10, 10)]
  assert asked[:35] == source.next(35) and asked[35:] == asked[:5]
  assert len(set(source.around(30, 99))) == 35


def test_faithful_is_judged_on_pixels(scene):
  hooks = worlds.open_world("scenes", "")
  source = render.render(scene, 0)
  rng = np.random.default_rng(5)
  text = language.sample_edit(rng, scene)
  edited = render.redraw(source, scene, language.read_edit(text, scene), 1)
  assert hooks.faithful(source, text, edited)
  assert not hooks.faithful(source, text, source)


def test_unknown_world_and_gaps_are_named():
  with pytest.raises(UserError, match="unknown world"):
    worlds.open_world("sceness", "")
  with pytest.raises(UserError, match="unknown gap set"):
    worlds.gap_set("hard")
  assert len(worlds.gap_set("seed:4")) == 8


def test_shipped_models_know_the_world():
  """Accuracy of every shipped model on fresh questions, as its config.json says."""
  mix = Mix(seed=77, scenes=60, images=60, per_image=4)
  draw = mix.draw(0)
  for name in ("ref_paligemma2", "ref_gemma3"):
    model = load_vlm(ROOT / "data/scenes/weights" / name)
    features = model.encode(list(mix.pixels(0, 60)))
    got = model.answer_features(features[draw.image], draw.texts, max_new_tokens=3)
    rate = np.mean([a == b for a, b in zip(got, draw.answers, strict=True)])
    assert rate > 0.94, name
    assert model.extras["heldout"]["all"]["rate"] > 0.97
  assert set(questions.SKILLS) >= {"dial", "count_color", "extreme_shape"}


@pytest.mark.slow
def test_the_loop_resumes_and_repeats_itself(tmp_path):
  """A miniature loop; run again nothing happens; elsewhere it gives the same summary."""
  tiny = [
    "--config.optim.steps=2",
    "--config.checkpoints.harvest=(1,)",
    "--config.discover.probes=480",
    "--config.discover.search_probes=128",
    "--config.verify.limit=60",
    "--config.rounds.steps=2",
    "--config.rectify.recipe.steps=4",
    "--config.rectify.curate.size=40",
  ]

  def run(workdir):
    command = [
      sys.executable,
      "-m",
      "auditdm_jax",
      "loop",
      "--config=configs/scenes.py",
      f"--workdir={workdir}",
      f"--config.pool.data_dir={tmp_path / 'data'}",
      *tiny,
    ]
    subprocess.run(command, cwd=ROOT, check=True, timeout=1200)
    summary = json.loads((workdir / "summary.json").read_text())
    del summary["seconds"]
    return summary

  first = run(tmp_path / "a")
  assert (tmp_path / "a" / "report" / "index.html").exists()
  assert run(tmp_path / "a") == first
  assert run(tmp_path / "b") == first
