# SPDX-License-Identifier: Apache-2.0
"""From prompts to the learner's batch; the ensemble and the image service answer by hash."""

import collections
import concurrent.futures
import functools
import itertools
import json
import math

import jax
import numpy as np
import pytest

from auditdm_jax.audit.answer import ModelBank
from auditdm_jax.audit.ask import Answer, BankConfig
from auditdm_jax.core.config import UserError
from auditdm_jax.core.metrics import Timer
from auditdm_jax.rl import batch as batch_lib
from auditdm_jax.rl import draws, flops, grpo, probing, reward, sampler, scoring
from auditdm_jax.rl.batch import Trajectory
from auditdm_jax.text.styles import PLAIN, RawReply
from tests.rl import fakes, tiny


@pytest.fixture(scope="module")
def mixed():
  """(rollout, result of step 0) with all strategies."""
  made = fakes.rollout(oracle=lambda image, question: "red")
  return made, made.step(tiny.auditor().params, 0)


def by(rows, **wanted):
  return [r for r in rows if all(r[k] == v for k, v in wanted.items())]


def test_prompts_are_a_pure_function_and_epochs_cover_the_pool():
  counts = {"edit": 1, "question": 2}

  def draw(step, *, seed=1, walk=("train",)):
    return draws.draw_prompts(counts, seed=seed, walk=walk, step=step, size=7)

  drawn = [draw(step) for step in range(14)]
  flat = [p for step in drawn for p in step]
  assert [p.uid for p in flat] == list(range(42))
  for epoch in range(6):
    assert sorted(p.index for p in flat[epoch * 7 : epoch * 7 + 7]) == list(range(7))
  assert drawn[5] == draw(5)
  for other in (draw(0, seed=2), draw(0, walk=("round2",))):
    assert [p.index for p in other] != [p.index for p in drawn[0]]


def test_every_strategy_keeps_its_lineage(mixed):
  made, result = mixed
  rows = result.records
  assert len(rows) == 6 * 4
  assert collections.Counter(r["probe"]["strategy"] for r in rows) == {
    "question": 8,
    "edit": 4,
    "generate": 4,
    "edit-only": 4,
    "generate-only": 4,
  }
  for r in rows:
    kinds = [t["kind"] for t in r["turns"]]
    asked = r["verdict"] is not None
    if r["probe"]["strategy"] == "question":
      assert kinds == ["question"] and r["probe"]["image_id"] == r["probe"]["source_image_id"]
    elif asked:
      first = "instruction" if r["probe"]["strategy"].startswith("edit") else "caption"
      assert kinds == ([first] if r["probe"]["strategy"].endswith("only") else [first, "question"])
      assert r["probe"][first] and r["probe"]["image_id"] != r["probe"]["source_image_id"]
      if r["probe"]["strategy"].endswith("only"):
        assert r["probe"]["question"] in fakes.Pool().questions(0)
      else:
        assert r["turns"][1]["image_id"] == r["probe"]["image_id"]
    assert asked == (r["malformed"] is None and r["invalid"] is None)


def test_the_auditors_fault_is_reward_zero(mixed):
  rows = mixed[1].records
  refused = [r for r in rows if (r["malformed"] or "").startswith("INVALID_INSTRUCTION")]
  truncated = by(rows, malformed="no end within the token limit")
  assert refused and truncated
  assert all(r["reward"] == 0.0 for r in refused + truncated)
  assert all(r["verdict"] is None for r in refused + truncated)


def test_the_services_fault_is_nobodys():
  made = fakes.rollout(client=fakes.Client(broken=50))
  result = made.step(tiny.auditor().params, 0)
  late = [r for r in result.records if r["invalid"]]
  assert late and all(r["reward"] is None and r["advantage"] == 0 for r in late)
  assert result.metrics["frac_invalid"] == pytest.approx(len(late) / 24)
  turns = sum(len(r["turns"]) for r in result.records if not r["invalid"])
  # Invalid samples have no place in any row.
  assert sum(int(rows.loss_mask.any(2).sum()) for rows in result.batch.parts) == turns


def test_too_many_invalid_samples_stop_the_run_with_the_reasons():
  made = fakes.rollout(client=fakes.Client(broken=100), max_invalid=0.2)
  with pytest.raises(probing.RolloutError, match=r"samples are invalid.*DEADLINE: late"):
    made.step(tiny.auditor().params, 0)


def test_rewards_are_the_verdicts(mixed):
  rows = mixed[1].records
  for r in rows:
    find = r["verdict"] is not None and r["verdict"]["disagreement"]
    assert r["reward"] == float(find) == r["parts"]["disagreement"]
    v = r["verdict"]
    truth = bool(find and v["consensus"] == "red" and v["answers"]["t"] != "red")
    assert r["oracle_success"] == truth
  assert any(r["reward"] for r in rows)
  shares = [f"share_{k}" for k in ("malformed", "find", "all_agree", "no_consensus")]
  assert sum(mixed[1].metrics[k] for k in shares) == pytest.approx(1)


def test_advantages_are_those_of_the_groups_and_reach_all_turns(mixed):
  result = mixed[1]
  groups = np.array([r["reward"] for r in result.records]).reshape(-1, 4)
  live = groups.max(1) > groups.min(1)
  advantages = np.array([r["advantage"] for r in result.records]).reshape(-1, 4)
  assert live.any() and (np.abs(advantages[live]).max(1) > 0).all()
  assert not advantages[~live].any()
  for number in (0, 1):
    want = [r["advantage"] for r in result.records if len(r["turns"]) > number]
    rows = result.batch.parts[number]
    np.testing.assert_allclose(rows.advantages[rows.loss_mask.any(2)], want, rtol=1e-6)


@pytest.mark.parametrize("per_row", [1, 4])
def test_batch_has_the_features_and_log_probs_of_each_turn(per_row):
  result = fakes.rollout(per_row=per_row).step(tiny.auditor().params, 0)
  for number, rows in enumerate(result.batch.parts):
    turns = [r["turns"][number] for r in result.records if len(r["turns"]) > number]
    places = np.argwhere(rows.loss_mask.any(2))
    assert len(places) == len(turns)
    for (row, g), turn in zip(places, turns):
      features = result.batch.features[rows.image[row]]
      np.testing.assert_array_equal(features, fakes.features([turn["image_id"]])[0])
      assert rows.loss_mask[row, g].sum() == turn["length"]
      assert rows.logp_sampler[row, g].sum() == pytest.approx(turn["logprob"], rel=1e-4)


def test_shapes_and_programs_are_the_same_in_every_step(mixed):
  made, first = mixed
  programs = sampler.compile_count()
  second = made.step(tiny.auditor().params, 1)
  shapes = lambda b: jax.tree.map(np.shape, b)  # noqa: E731
  assert shapes(first.batch) == shapes(second.batch)
  assert sampler.compile_count() == programs


def test_seeds_differ_per_walk_and_samples_do_not_depend_on_their_batch(mixed):
  made, first = mixed
  params = tiny.auditor().params
  counts = made.config.counts()
  draw = functools.partial(draws.draw_prompts, counts, seed=3, step=0, size=6)
  prompts = draw(walk=("train",))
  texts = lambda ts: {(t.prompt_id, t.sample): [x.text for x in t.turns] for t in ts}  # noqa: E731
  prober = fakes.prober(made.config)
  again = texts(prober.generate(params, prompts[::-1], timer=Timer(), group=4))
  assert again == {
    (r["prompt_id"], r["sample"]): [t["text"] for t in r["turns"]] for r in first.records
  }
  later = texts(prober.generate(params, draw(walk=("round2",)), timer=Timer(), group=4))
  assert all(later[key] != again[key] for key in list(again)[:4])
  for group in (again[p.uid, g][0] for p in prompts[-1:] for g in range(4)):
    assert isinstance(group, str)
  assert len({again[prompts[-1].uid, g][0] for g in range(4)}) > 1


def test_a_made_image_says_how_its_size_was_fitted(mixed):
  config, params = mixed[0].config, tiny.auditor().params
  prompts = draws.draw_prompts(config.counts(), seed=3, walk=("train",), step=0, size=6)
  done = fakes.prober(config).generate(params, prompts, timer=Timer(), group=4)
  fits = {bool(t.fit) for t in done if t.image_id not in ("", t.source_image_id)}
  assert fits == {True} and not any(t.fit for t in done if t.image_id == t.source_image_id)


def test_several_questions_about_each_made_image_and_no_image_more(mixed, monkeypatch):
  """As if each had been a sample of its own, and of the data set's none twice."""
  made, params = mixed[0].config, tiny.auditor().params
  prompts = draws.draw_prompts(made.counts(), seed=3, walk=("train",), step=0, size=6)
  once = fakes.prober(made).generate(params, prompts, timer=Timer(), group=2)
  prober = fakes.prober(made)
  sample, sizes = prober.sampler.sample, []

  def spied(*args, samples, turn, **options):
    sizes.extend([samples.size] * turn)
    return sample(*args, samples=samples, turn=turn, **options)

  monkeypatch.setattr(prober.sampler, "sample", spied)
  begun = prober.first_turns(params, prompts, timer=Timer(), group=2)
  many = prober.second_turns(params, begun, timer=Timer(), questions=3)
  assert 0 < max(sizes) <= 2 * 4, "no call is larger than that of the second turns of two groups"
  assert {t.image_id for t in many} == {t.image_id for t in once}
  for row in once:
    own = [t for t in many if t.prompt_id == row.prompt_id and t.sample // 3 == row.sample]
    strategy = next(s for s, _ in made.active() if s.name == row.strategy)
    if not strategy.makes:
      own = [t for t in many if (t.prompt_id, t.sample) == (row.prompt_id, row.sample)]
      assert [t.turns[0].text for t in own] == [row.turns[0].text]
      continue
    assert {t.turns[0].text for t in own} == {row.turns[0].text}
    assert {t.image_id for t in own} == {row.image_id}
    if strategy.question == "data":
      asked = fakes.Pool().questions(prompts[row.prompt_id].index)
      assert own[0].question == row.question and {t.question for t in own} <= set(asked)
      assert len({t.question for t in own}) == len(own) == min(3, len(set(asked)))
    else:
      assert len(own) == 3
  later = [t.turns[1].text for t in many if len(t.turns) == 2]
  assert len(set(later)) > len(later) / 3, "questions about one image differ"


def test_banned_ids_are_never_sampled(mixed):
  result, banned = mixed[1], tiny.tokenizer().unsampled_ids(tiny.auditor().stop_ids)
  drawn = np.concatenate([rows.targets[rows.loss_mask] for rows in result.batch.parts])
  assert tiny.tokenizer().image_id in banned
  assert not np.isin(drawn, banned).any()


def test_novelty_weighs_finds_and_is_carried_over():
  made = fakes.rollout(reward_config=reward.RewardConfig(novelty="archive"))
  params = tiny.auditor().params
  first = made.step(params, 0)
  assert {r["weight"] for r in first.records} == {1.0}
  finds = [r for r in first.records if r["reward"]]
  counts = collections.Counter(r["verdict"]["consensus"] for r in finds)
  assert made.state()["novelty"]["counts"] == dict(counts)
  second = made.step(params, 1)
  assert {r["reward"] for r in second.records} <= {0.0, 1.0}  # the weight is not in the reward


def test_malformed_by_the_worlds_grammar():
  made = fakes.rollout({"question": 3}, well_formed=lambda q: "red" in q)
  rows = made.step(tiny.auditor().params, 0).records
  refused = by(rows, malformed="not a question of this world")
  assert refused and all(r["reward"] == 0 for r in refused)


def test_rows_are_padded_to_the_mesh():
  padded = functools.partial(batch_lib.padded, devices=8)
  for per_row, used in ((4, 3), (1, 12)):
    made = fakes.rollout({"question": 3}, padded=padded, per_row=per_row)
    (rows,) = made.step(tiny.auditor().params, 0).batch.parts
    assert rows.prompt.shape[0] == -(-used // 8) * 8
    assert rows.loss_mask[:used].any((1, 2)).all() and not rows.loss_mask[used:].any()


def test_penalties_count_tokens_and_leave_invalid_samples_invalid():
  config = reward.RewardConfig(length=0.5, length_limit=2)
  made = fakes.rollout(client=fakes.Client(broken=50), reward_config=config)
  for r in made.step(tiny.auditor().params, 0).records:
    n = sum(t["length"] for t in r["turns"])
    if r["invalid"]:
      assert r["reward"] is None
    else:
      want = r["parts"]["disagreement"] - 0.5 * max(0, n - 2) / 2
      assert math.isclose(r["reward"], want)


def test_a_tower_that_trains_gets_pixels_and_the_sampler_its_current_features():
  asked = []

  def features(params, ids):
    asked.append(params)
    return fakes.features(ids)

  pixels = lambda ids: np.stack([fakes.pick(i) % 7 * np.ones((2, 2, 3)) for i in ids])  # noqa: E731
  made = fakes.rollout(sight=fakes.Sight(features, pixels))
  params = tiny.auditor().params
  result = made.step(params, 0)
  assert len(asked) == 2 and all(p is params for p in asked)  # first and second turns
  assert result.batch.features is None
  for number, rows in enumerate(result.batch.parts):
    turns = [r["turns"][number] for r in result.records if len(r["turns"]) > number]
    for (row, _), turn in zip(np.argwhere(rows.loss_mask.any(2)), turns):
      np.testing.assert_array_equal(
        result.batch.pixels[rows.image[row]], pixels([turn["image_id"]])[0]
      )


class SlowClient(fakes.Client):
  """Draws nothing before the ensemble was asked about the source images."""

  def __init__(self, bank):
    super().__init__()
    self._bank, self.waiting = bank, []

  def _make(self, text, seed, shape):
    assert not self._bank.asked  # Requested before anything else is done.
    done, future = super()._make(text, seed, shape), concurrent.futures.Future()
    self.waiting.append((future, done.result()))
    return future


class WaitedForBank(fakes.Bank):
  """The images are there once it has answered."""

  client = None

  def verdicts(self, load, questions, *, image_ids, cascade=None):
    result = super().verdicts(load, questions, image_ids=image_ids)
    for future, image in self.client.waiting:
      if not future.done():
        future.set_result(image)
    return result


def test_probes_about_source_images_are_answered_while_the_new_ones_are_made(mixed):
  """It would end in time-outs otherwise; the result is that of a client that is never late."""
  bank = WaitedForBank()
  bank.client = SlowClient(bank)
  made = fakes.rollout(
    bank=bank, client=bank.client, oracle=lambda image, question: "red", deadline_s=20.0
  )
  result = made.step(tiny.auditor().params, 0)
  assert bank.client.waiting
  assert result.records == mixed[1].records


class DeadClient(fakes.Client):
  """Every other image never comes."""

  def _make(self, text, seed, shape):
    done = super()._make(text, seed, shape)
    return done if seed % 2 else concurrent.futures.Future()


def test_time_outs_count_as_invalid_not_as_zero():
  made = fakes.rollout(client=DeadClient(), deadline_s=0.2)
  result = made.step(tiny.auditor().params, 0)
  late = [r for r in result.records if r["invalid"]]
  assert late and all(r["invalid"] == "DEADLINE: no image after 0.2 s" for r in late)
  assert all(r["reward"] is None and r["advantage"] == 0 for r in late)
  # The others of a group have the advantages that they would have without it.
  for i in range(0, len(result.records), 4):
    group = [r["reward"] for r in result.records[i : i + 4] if r["reward"] is not None]
    want = grpo.advantages([group])[0] if len(group) > 1 else [0.0] * len(group)
    got = [r["advantage"] for r in result.records[i : i + 4] if r["reward"] is not None]
    np.testing.assert_allclose(got, want, rtol=1e-6)
  with pytest.raises(probing.RolloutError, match="no image after"):
    fakes.rollout(client=DeadClient(), deadline_s=0.2, max_invalid=0.0).step(
      tiny.auditor().params, 0
    )


class Parrot:
  """A model that answers question "i j k" with the word its place in the ensemble picks."""

  style, takes = PLAIN, "features"

  def __init__(self, place):
    self.place, self.tower_id, self.calls = place, "tower", 0
    self.tokenizer, self.config = tiny.tokenizer(), tiny.config()

  def encode(self, images):
    return np.zeros((len(images), 1, 1), np.float32)

  def reply_features(self, features, prompts, *, max_new_tokens, which):
    self.calls += len(prompts)
    return [RawReply(WORDS[int(p.split()[self.place])], "stop") for p in prompts]


WORDS = ("red", "blue", "unanswerable", "")


def parrots(**fields):
  models = {name: Parrot(i) for i, name in enumerate(("t", "a", "b", "c"))}
  config = BankConfig(abstentions=("unanswerable",), **fields)
  return ModelBank(models, "t", ("a", "b", "c"), config=config)


def rewards(bank, **options):
  """Of every pattern of answers that there is."""
  pool = fakes.Pool()
  scorer = scoring.Scorer(
    draws.RolloutConfig(**options),
    reward.RewardConfig(),
    bank=bank,
    load=fakes.Store(pool),
  )
  patterns = list(itertools.product(range(len(WORDS)), repeat=4))
  asked = [
    Trajectory(
      ("train",), i, 0, "question", "", image_id=pool.image_id(0), question=" ".join(map(str, p))
    )
    for i, p in enumerate(patterns)
  ]
  return scorer.score(scorer.judge(asked))


def test_a_cascade_gives_the_same_reward_for_all_patterns_of_answers():
  full, thrifty = parrots(), parrots(cascade=True)
  want, got = rewards(full), rewards(thrifty, full_share=0.0)
  assert [t.reward for t in got] == [t.reward for t in want]
  assert {t.reward for t in want} == {0.0, 1.0}
  assert thrifty.computed.total() < 0.6 * full.computed.total()
  for order in itertools.permutations(("t", "a", "b", "c")):
    other = rewards(parrots(cascade=True, order=order), full_share=0.0)
    assert [t.reward for t in other] == [t.reward for t in want], order


def test_some_probes_of_a_cascade_are_put_to_all_models():
  got = rewards(parrots(cascade=True), full_share=0.25)
  again = rewards(parrots(cascade=True), full_share=0.25)
  assert [t.verdict for t in got] == [t.verdict for t in again]
  extra = [t for t in got if None not in t.verdict.answers.values()]
  none = rewards(parrots(cascade=True), full_share=0.0)
  always = [t for t in none if all(t.verdict.answers.values())]
  assert 0.15 < (len(extra) - len(always)) / len(got) < 0.35
  full = {t.prompt_id: t.verdict for t in rewards(parrots())}
  assert all(t.verdict == full[t.prompt_id] for t in extra)


class Fickle(fakes.Bank):
  """One of its references changes its mind over every other paraphrase, or is not sure."""

  def hear(self, load, questions, *, image_ids, models):
    assert tuple(models) == self.references
    assert all(q.startswith("say: ") for q in questions)
    said = [self._verdict(i, q[5:]).consensus for i, q in zip(image_ids, questions)]
    b = [
      Answer("else", "answer", "")
      if i % 4 == 1
      else Answer(word, "unsure" if i % 2 else "answer", "")
      for i, word in enumerate(said)
    ]
    return {"a": [Answer(word, "answer", "") for word in said], "b": b}


def test_finds_without_a_stable_consensus_lose_their_reward():
  plain, config = fakes.rollout(), reward.RewardConfig(answerability=1.0)
  made = fakes.rollout(bank=Fickle(), reward_config=config, paraphrase=lambda q, k: f"say: {q}")
  params = tiny.auditor().params
  want, got = (r.step(params, 0) for r in (plain, made))
  finds = [r for r in got.records if r["parts"]["disagreement"]]
  assert len(finds) > 1
  assert [r["parts"]["answerability"] for r in finds] == [1.0 - i % 2 for i in range(len(finds))]
  for a, b in zip(want.records, got.records):
    lost = b["parts"].get("answerability") == 0
    assert b["reward"] == (0.0 if lost else a["reward"])
    assert ("answerability" in b["parts"]) == (b["parts"]["disagreement"] == 1)
  assert got.metrics["probes"] == want.metrics["probes"] + len(finds)
  assert got.metrics["reward/answerability"] == (len(finds) + 1) // 2 / len(finds)
  with pytest.raises(UserError, match="answerability needs paraphrases"):
    fakes.rollout(reward_config=config)


def test_work_is_counted_by_phase():
  """Of the ensemble by the probes that reached it, of the sampler by what it wrote."""
  bank = parrots()
  bank.verdicts = lambda load, questions, **options: ModelBank.verdicts(
    bank, load, ["0 1 1 1"] * len(questions), **options
  )
  made = fakes.rollout({"question": 2}, bank=bank)
  result = made.step(tiny.auditor().params, 0)
  probes = sum(vlm.calls for vlm in bank.vlms.values())
  assert probes == bank.computed.total() > 0
  # A probe is an image and a few words; an answer is one more.
  slots, config = tiny.config().num_image_tokens, tiny.config().text
  least, most = (
    flops.decoder(config, tokens=n, context=n, predictions=1) for n in (slots, slots + 20)
  )
  towers = flops.tower(tiny.config().vision) * bank.cache.encoded.total()
  assert least < (result.flops["answers"] - towers) / probes < most
  drawn = result.metrics["tokens"]
  assert result.flops["sample"] > flops.decoder(config, tokens=drawn, context=0, predictions=drawn)


def test_configs_that_cannot_be_meant_are_refused():
  with pytest.raises(UserError, match="did you mean 'edit-only'"):
    draws.RolloutConfig(prompts={"edit_olny": 1})
  with pytest.raises(UserError, match="no strategy"):
    draws.RolloutConfig(prompts={"question": 0})
  with pytest.raises(UserError, match="max_new_tokens.caption"):
    draws.RolloutConfig(prompts={"generate": 1}, max_new_tokens={"question": 4})
  with pytest.raises(UserError, match="rollout.task"):
    draws.RolloutConfig(task={"questoin": "ask"})
  with pytest.raises(UserError, match="full_share=5.0: a share"):
    draws.RolloutConfig(full_share=5.0)


STEPS = """
  import json, jax
  from auditdm_jax.core import mesh
  from tests.rl import fakes
  devices = mesh.make_mesh({"data": -1})
  learner = fakes.learner()
  rollout = fakes.rollout(PROMPTS, mesh=devices, padded=learner.padded)
  rows = []
  for step in range(2):
    result = rollout.step(learner.params, step)
    learner.update(result.batch)
    for r in result.records:
      rows.append([r["probe"]["question"], r["probe"]["instruction"], r["reward"]])
  print(json.dumps([jax.device_count(), rows]))
"""


@pytest.mark.parametrize(
  "prompts", ['{"question": 8}', pytest.param('{"question": 8, "edit": 2}', marks=pytest.mark.slow)]
)
def test_one_device_equals_eight(run_python, prompts):
  """Texts and rewards, before and after an update: prompts are split, draws do not care."""
  source = STEPS.replace("PROMPTS", prompts)
  one, eight = (json.loads(run_python(source, devices=n, timeout_s=600)) for n in (1, 8))
  assert (one[0], eight[0]) == (1, 8)
  assert one[1] == eight[1]
