# SPDX-License-Identifier: Apache-2.0
"""Which proposals are asked: properties of the choice, and of a step that has one."""

import concurrent.futures
import dataclasses

import jax
import numpy as np
import pytest

from auditdm_jax.core.config import UserError
from auditdm_jax.core.image_store import Images
from auditdm_jax.rl import grpo, picking
from auditdm_jax.rl.batch import AuditorReply, Trajectory
from auditdm_jax.rl.picking import Picker, area, choose
from auditdm_jax.rl.surrogate import Surrogate, SurrogateConfig
from tests.rl import fakes, tiny

TINY = SurrogateConfig(proposals=9, random=1, least=8, batch=8, fits=2, width=8, heads=2)


@pytest.mark.parametrize("seed", range(40))
def test_the_choice_is_some_by_lot_then_the_best_distinct_ones(seed):
  rng = np.random.default_rng(seed)
  n, by_lot = int(rng.integers(8, 40)), int(rng.integers(0, 4))
  said = [None if k > 9 else str(k) for k in rng.integers(0, 14, n)]
  scores = rng.random(n)
  places, lot = choose(said, scores, size=8, by_lot=by_lot, rng=np.random.default_rng(seed))
  assert places == sorted(set(places)) and len(places) == 8 and len(lot) == by_lot
  assert lot <= set(places)
  drawn = {said[i] for i in lot}
  best = {}  # The likeliest sample of each question that the lot has not drawn.
  for i in range(n):
    if said[i] is not None and said[i] not in drawn:
      if said[i] not in best or scores[i] > scores[best[said[i]]]:
        best[said[i]] = i
  want = sorted(best.values(), key=lambda i: -scores[i])[: 8 - by_lot]
  assert set(want) <= set(places) - lot
  assert len(want) == 8 - by_lot or len(want) == len(best)


def test_the_lot_draws_each_proposal_alike():
  counts = np.zeros(10)
  for seed in range(4000):
    _, lot = choose(
      [None, *"abcdefghi"],
      np.arange(10.0),
      size=4,
      by_lot=2,
      rng=np.random.default_rng(seed),
    )
    counts[list(lot)] += 1
  assert abs(counts / 4000 - 0.2).max() < 0.03


def test_area_is_the_share_of_pairs_in_order():
  rng = np.random.default_rng(0)
  scores, found = rng.integers(0, 5, 60), rng.random(60) < 0.4
  pairs = [(a > b) + (a == b) / 2 for a in scores[found] for b in scores[~found]]
  assert area(scores, found) == pytest.approx(np.mean(pairs))
  assert area([1, 2], [True, True]) is None


@pytest.fixture(scope="module")
def steps():
  """(rollout, bank, results of four steps)."""
  bank = fakes.Bank()
  made = fakes.rollout(fakes.MIXED, surrogate=TINY, bank=bank)
  return made, bank, [made.step(tiny.auditor().params, step) for step in range(4)]


def rows_of(steps):
  return [row for result in steps[2] for row in result.records]


def test_what_is_not_picked_is_not_asked(steps):
  rows = rows_of(steps)
  assert len(rows) == 4 * 6 * 4
  assert len(steps[1].asked) == sum(row["verdict"] is not None for row in rows)
  assert all(result.metrics["completions"] == 24 for result in steps[2])
  assert all(result.metrics["surrogate/proposals"] == 6 * 9 for result in steps[2])
  assert {row["pick"]["proposals"] for row in rows} == {9}
  assert max(row["sample"] for row in rows) == 8


def test_the_best_distinct_ones_are_asked(steps):
  """None is malformed but by lot, unless a group has too few distinct ones."""
  groups = {}
  for row in rows_of(steps):
    groups.setdefault((row["step"], row["prompt_id"]), []).append(row)
  for group in groups.values():
    assert sum(row["pick"]["by_lot"] for row in group) == 1
    picked = [row["pick"]["text"] for row in group if not row["pick"]["by_lot"]]
    texts = [text for text in picked if text is not None]
    if len(texts) == 3:
      assert len(set(texts)) == 3


def test_the_net_is_told_what_became_of_its_picks(steps):
  """It reads an instruction with the source image; it does not hear of malformed first turns."""
  told = [row for row in rows_of(steps) if row["pick"]["text"] and not row["invalid"]]
  net = steps[0]._picker.surrogate
  assert net._images == [row["probe"]["source_image_id"] for row in told]
  assert list(net._found) == [row["parts"]["disagreement"] == 1 for row in told]
  for row in told:
    strategy, text = row["probe"]["strategy"], row["pick"]["text"]
    said = row["turns"][0]["text"].strip()
    assert text == (said if strategy == "question" else f"{strategy} {said}")


def test_predictions_are_beside_what_was_found(steps):
  """Only from when it had seen enough; a step's own verdicts are not in them."""
  first, *later = steps[2]
  assert first.metrics["surrogate/picked"] == 0 and "surrogate/predicted" not in first.metrics
  assert {row["pick"]["predicted"] for row in first.records} == {None}
  for result in later:
    rows = [row for row in result.records if not row["invalid"]]
    best = [r for r in rows if not r["pick"]["by_lot"] and r["pick"]["predicted"] is not None]
    assert result.metrics["surrogate/picked"] == len(best) > 0
    for name, values in (
      ("predicted", [r["pick"]["predicted"] for r in best]),
      ("found", [r["parts"]["disagreement"] for r in best]),
      ("lot_found", [r["parts"]["disagreement"] for r in rows if r["pick"]["by_lot"]]),
    ):
      assert result.metrics[f"surrogate/{name}"] == pytest.approx(np.mean(values))


def test_all_that_is_written_is_work_and_so_is_the_net(steps):
  plain = fakes.rollout(fakes.MIXED).step(tiny.auditor().params, 0)
  with_net = steps[2][0]
  assert with_net.flops["sample"] > plain.flops["sample"]
  want = Surrogate(TINY, look=fakes.features, seed=3).flops(54, fits=2)
  assert with_net.flops["surrogate"] == want and "surrogate" not in plain.flops
  assert with_net.seconds["surrogate"] > 0 and "surrogate" not in plain.seconds


def test_a_surrogate_that_keeps_all_changes_nothing():
  """As many proposals as are asked: the samples of a run without one."""
  config = SurrogateConfig(proposals=4, random=0, least=8, batch=8, fits=1, width=8, heads=2)
  results = [
    fakes.rollout({"question": 2, "edit": 1}, **options).step(tiny.auditor().params, 0)
    for options in ({"surrogate": config}, {})
  ]
  rows = [[{**row, "pick": None} for row in result.records] for result in results]
  assert rows[0] == rows[1]
  assert all(row["pick"] is None for row in results[1].records)
  assert not any(name.startswith("surrogate") for name in results[1].metrics)


def test_fewer_proposals_than_are_asked_are_refused():
  with pytest.raises(UserError, match="surrogate.proposals=3: must be at least grpo.group_size=4"):
    fakes.rollout(surrogate=SurrogateConfig(proposals=3))


def _other(params):
  """Another auditor of the same shapes."""
  return jax.tree.map(lambda x: x + 0.1 * np.sin(np.arange(x.size)).reshape(x.shape), params)


def test_the_auditor_before_training_writes_its_share_of_the_proposals():
  trained = tiny.auditor().params
  before, surrogate = _other(trained), dataclasses.replace(TINY, random=3)
  whole = dataclasses.replace(surrogate, random=9)

  def written(params):
    """(prompt, sample): first turn, where one auditor writes and all is asked."""
    made = fakes.rollout(fakes.MIXED, group_size=9, surrogate=whole)
    return {(r["prompt_id"], r["sample"]): r["turns"][0] for r in made.step(params, 0).records}

  mixed = fakes.rollout(
    fakes.MIXED,
    surrogate=dataclasses.replace(surrogate, untrained=4),
    grpo_config=grpo.GrpoConfig(group_size=4, tis_cap=2.0),
    before=before,
  )
  result, by = mixed.step(trained, 0), {False: written(trained), True: written(before)}
  assert by[False].keys() == by[True].keys()
  for row in result.records:
    untrained = row["sample"] >= 5
    want, got = by[untrained][row["prompt_id"], row["sample"]], row["turns"][0]
    assert row["pick"]["untrained"] == untrained and got["text"] == want["text"]
    assert got["logprob"] == pytest.approx(want["logprob"], rel=1e-5)
  assert {row["pick"]["untrained"] for row in result.records} == {False, True}
  assert result.metrics["surrogate/proposals"] == 6 * 9
  lot = [r for r in result.records if r["pick"]["by_lot"] and not r["invalid"]]
  own = [r for r in lot if not r["pick"]["untrained"]]
  assert 0 < result.metrics["surrogate/lot"] == len(own) < len(lot), "the policy's own alone"


def test_each_author_reads_every_prompt():
  params, surrogate = tiny.auditor().params, dataclasses.replace(TINY, untrained=4)
  corrected = grpo.GrpoConfig(group_size=4, tis_cap=2.0)
  two = fakes.rollout(fakes.MIXED, surrogate=surrogate, grpo_config=corrected, before=params)
  one = fakes.rollout(fakes.MIXED, surrogate=TINY, grpo_config=corrected)
  results = [made.step(params, 0) for made in (two, one)]
  turns = [[turn for row in result.records for turn in row["turns"]] for result in results]
  logprobs = [[turn.pop("logprob") for turn in of_one] for of_one in turns]
  assert turns[0] == turns[1], "they are one auditor here"
  # Programs of other sizes may round otherwise.
  np.testing.assert_allclose(*logprobs, rtol=1e-5)
  extra = results[0].flops["sample"] - results[1].flops["sample"]
  assert 0 < extra < 0.5 * results[1].flops["sample"]


def test_without_proposals_the_share_says_nothing():
  fakes.rollout(surrogate=SurrogateConfig(proposals=0, untrained=4))


def test_an_older_auditor_needs_a_correction_and_leaves_a_share():
  with pytest.raises(UserError, match="untrained=4: these are of an older auditor.*tis_cap"):
    fakes.rollout(surrogate=dataclasses.replace(TINY, untrained=4))
  with pytest.raises(UserError, match="untrained=9: must be below surrogate.proposals=9"):
    dataclasses.replace(TINY, untrained=9)


@pytest.fixture(scope="module")
def wide():
  """As `steps`, with three prompts sampled for each one that is asked."""
  bank = fakes.Bank()
  made = fakes.rollout(fakes.MIXED, surrogate=dataclasses.replace(TINY, prompts=3), bank=bank)
  return made, bank, [made.step(tiny.auditor().params, step) for step in range(4)]


def test_of_more_prompts_as_many_of_each_strategy_are_asked(wide, steps):
  for result, plain in zip(wide[2], steps[2]):
    strategies = [[row["probe"]["strategy"] for row in r.records] for r in (result, plain)]
    assert strategies[0] == strategies[1]
    prompts = [row["prompt_id"] for row in result.records]
    assert prompts == sorted(prompts) and len(set(prompts)) == 6
    assert {row["pick"]["proposals"] for row in result.records} == {27}
    assert result.metrics["surrogate/proposals"] == 6 * 27
    # A prompt that is left out costs its prefill too.
    assert result.flops["sample"] > plain.flops["sample"]
  ids = [row["prompt_id"] for row in rows_of(wide)]
  assert max(ids) >= 18 * 3  # The walk goes on by all that were sampled.


def test_an_image_is_made_for_the_prompt_that_asked_for_it():
  """From the source of that prompt, by the sample's own seed."""

  class Brighter(fakes.Client):
    def edit(self, image, instruction, *, seed):
      future = super().edit(image, instruction, seed=seed)
      if (result := future.result()).image is not None:
        future = concurrent.futures.Future()
        future.set_result(dataclasses.replace(result, image=image + np.uint8(1 + seed % 9)))
      return future

  pool = fakes.Pool()
  sources = {pool.image_id(i): pool.image(i) for i in range(len(pool))}
  surrogate = dataclasses.replace(TINY, prompts=3)
  made = fakes.rollout({"question": 1, "edit": 2}, surrogate=surrogate, client=Brighter())
  seen = 0
  for step in range(4):
    for row in made.step(tiny.auditor().params, step).records:
      probe = row["probe"]
      if probe["image_id"] != probe["source_image_id"]:
        image = sources[probe["source_image_id"]] + np.uint8(1 + probe["seed"] % 9)
        assert probe["image_id"] == Images.id_of(image)
        seen += 1
  assert seen > 9


def test_what_the_lot_draws_of_a_chosen_prompt_is_not_the_policys_word(wide, steps):
  shares = [np.mean([r["pick"]["by_lot"] for r in rows_of(made)]) for made in (wide, steps)]
  assert shares[1] == 1 / 4 and 0 < shares[0] < 3 / 16
  first = [row for row in rows_of(wide) if row["step"] == 0]
  assert sum(row["pick"]["by_lot"] for row in first) == 6  # It knows nothing yet.


def said(uid, *texts):
  """Samples of a prompt that say so."""
  empty = np.zeros(0, np.float32)
  return [
    Trajectory(
      ("a",),
      uid,
      g,
      "question",
      str(uid),
      turns=(AuditorReply("question", "0", (1, 2), text, empty, empty, 0, False),),
      fields={"question": text},
    )
    for g, text in enumerate(texts)
  ]


def test_a_prompt_promises_as_much_as_its_different_questions(monkeypatch):
  config = dataclasses.replace(TINY, prompts=2, random=0, proposals=4)
  picker = Picker(config, look=fakes.features, seed=0)
  monkeypatch.setattr(picking, "_BY_LOT", 0.0)
  picker.surrogate.observe(["a", "b"] * 8, ["0"] * 16, [True, False] * 8)
  picker.surrogate.fit(0)
  likely = {"x": 0.9, "p": 0.6, "q": 0.6, "r": 0.01, "s": 0.01}
  monkeypatch.setattr(
    picker.surrogate, "predict", lambda texts, images: np.array([likely[t] for t in texts])
  )
  (kept,), rest = picker.pick([said(0, "x", "x", "x", "x"), said(1, "p", "q", "r", "s")], size=3)
  assert {t.prompt_id for t in kept} == {1} and len(rest) == 5
  assert [t.pick.text for t in kept][:2] == ["p", "q"]


@pytest.mark.parametrize("count", [9, 36, 72])
def test_prompts_are_kept_for_what_they_promise_and_some_by_lot(count):
  picker = Picker(dataclasses.replace(TINY, prompts=3), look=fakes.features, seed=0)
  firsts = [
    Trajectory(("a",), uid, 0, "edit" if 3 * uid < count else "question", "0")
    for uid in range(count)
  ]
  promise = np.random.default_rng(1).random(count)
  before = picker._prompts(firsts, promise)
  assert set(before.values()) == {True}  # It knows nothing yet.
  picker.surrogate.observe(["a", "b"] * 8, ["0"] * 16, [True, False] * 8)
  picker.surrogate.fit(0)
  asked = picker._prompts(firsts, promise)
  assert len(asked) == count // 3
  for strategy in ("edit", "question"):
    rows = [i for i in range(count) if firsts[i].strategy == strategy]
    best = [i for i in rows if asked.get(i) is False]
    left = [i for i in rows if i not in asked]
    assert len(best) + len(left) + sum(asked.get(i) is True for i in rows) == len(rows)
    assert min((promise[i] for i in best), default=1) >= max((promise[i] for i in left), default=0)
  if count == 72:
    assert 0 < sum(asked.values()) < 14


def test_without_proposals_the_rest_of_the_section_says_nothing():
  """One key turns a surrogate off, so that an ablation may."""
  results = [
    fakes.rollout({"question": 2, "edit": 1}, surrogate=config).step(tiny.auditor().params, 0)
    for config in (SurrogateConfig(proposals=0, prompts=3), SurrogateConfig())
  ]
  assert results[0].records == results[1].records
