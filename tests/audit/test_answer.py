# SPDX-License-Identifier: Apache-2.0
"""The model bank: de-duplication, feature cache, cascade = full ensemble, counters."""

import time
import zlib

import numpy as np
import pytest

from auditdm_jax.audit.answer import FeatureCache, ModelBank
from auditdm_jax.audit.ask import MAX_RAW, BankConfig, ask
from auditdm_jax.audit.probe import Verdict
from auditdm_jax.audit.verdict import verdict
from auditdm_jax.core.config import UserError, build
from auditdm_jax.core.image_store import Images
from auditdm_jax.text import styles
from auditdm_jax.text.styles import RawReply, Style

WORDS = ("red", "blue", "unanswerable")


def _noisy(seed):
  return lambda q, pixel: WORDS[zlib.crc32(f"{seed} {q} {pixel}".encode()) % 3]


def _doubts(seed):
  """Log-probs of which about a third are below that of .8."""
  return lambda q, pixel: -(zlib.crc32(f"doubt {seed} {q} {pixel}".encode()) % 100) / 300


def _bank(fake_vlm, *, heard=None, **fields):
  vlms = {name: fake_vlm(_noisy(i), logprob=_doubts(i)) for i, name in enumerate("tab", start=1)}
  config = BankConfig(abstentions=("unanswerable",), **fields)
  return ModelBank(vlms, "t", ("a", "b"), config=config, heard=heard)


def _probes(make_picture, n=60):
  pictures = [make_picture(i) for i in range(7)]
  return [pictures[i % 7] for i in range(n)], [f"q{i % 9}" for i in range(n)]


def test_one_question_is_asked_once_and_one_image_encoded_once(fake_vlm, make_picture):
  bank = _bank(fake_vlm)
  images, questions = _probes(make_picture, 126)
  answers = bank.answers(images, questions)
  expected = [bank.vlms["t"].rule(q, int(i[0, 0, 0])) for i, q in zip(images, questions)]
  assert answers["t"] == expected
  assert bank.computed["t"] == 63 and bank.asked["t"] == 126
  assert bank.cache.encoded.total() == 7  # three models, one tower
  assert list(answers) == ["a", "t", "b"]


def test_without_deduplication_the_answers_are_the_same(fake_vlm, make_picture):
  images, questions = _probes(make_picture, 126)
  each, once = _bank(fake_vlm, dedup=False), _bank(fake_vlm)
  assert each.answers(images, questions) == once.answers(images, questions)
  assert each.computed["t"] == each.asked["t"] == 126 > once.computed["t"]


@pytest.mark.parametrize("model", ["t", "a"])
@pytest.mark.parametrize("cascade", [False, True])
def test_what_was_heard_elsewhere_is_not_asked_again(fake_vlm, make_picture, cascade, model):
  """And who was not sure of it is not sure of it here."""
  images, questions = _probes(make_picture, 126)
  first = _bank(fake_vlm, cascade=cascade, sure=0.8)
  ids = [Images.id_of(image) for image in images]
  rows = list(zip(ids, questions))[:30]
  # As a benchmark asks, which knows no roles.
  seen = first.vlms[model].encode(images[:30])
  told = ask(first.vlms[model], seen, questions[:30], config=first.config)
  again = _bank(
    fake_vlm, cascade=cascade, sure=0.8, heard={model: dict(zip(rows, told, strict=True))}
  )
  assert again.verdicts(images, questions) == first.verdicts(images, questions)
  other = {"t": "a", "a": "t"}[model]
  assert again.computed[other] == first.computed[other]
  assert 0 < first.computed[model] - again.computed[model] <= len(rows)


@pytest.mark.parametrize("sure", [0.0, 0.8])
@pytest.mark.parametrize("order", [(), ("t", "b", "a")])
def test_cascade_finds_the_same_disagreements(fake_vlm, make_picture, sure, order):
  images, questions = _probes(make_picture)
  full = _bank(fake_vlm, sure=sure)
  thrifty = _bank(fake_vlm, sure=sure, cascade=True, batch_size=16, order=order)
  a, b = full.verdicts(images, questions), thrifty.verdicts(images, questions)
  assert [v.disagreement for v in a] == [v.disagreement for v in b]
  assert any(v.disagreement for v in a) and any(v.reason == "skipped" for v in b)
  assert all(x == y for x, y in zip(a, b) if x.disagreement)
  assert thrifty.computed.total() < full.computed.total()


@pytest.mark.parametrize("order", [(), ("t", "c", "b", "a")])
def test_a_cascade_of_two_of_three_counts_only_who_is_sure(fake_vlm, make_picture, order):
  vlms = {name: fake_vlm(_noisy(i), logprob=_doubts(i)) for i, name in enumerate("tabc")}
  probes, found = _probes(make_picture, 126), []
  for how in ({}, {"cascade": True, "order": order}):
    bank = ModelBank(vlms, "t", "abc", config=BankConfig(agree=0.67, sure=0.8, **how))
    found.append([v.disagreement for v in bank.verdicts(*probes)])
  assert found[0] == found[1] and any(found[0])
  assert bank.computed.total() < 4 * 63


def test_a_reference_that_is_not_sure_makes_no_consensus(fake_vlm, make_picture):
  probes = _probes(make_picture, 126)
  plain, strict = _bank(fake_vlm).verdicts(*probes), _bank(fake_vlm, sure=0.8).verdicts(*probes)
  lost = 0
  for before, after, image, question in zip(plain, strict, *probes):
    doubts = {
      name
      for i, name in ((2, "a"), (3, "b"))
      if before.answers[name] != "unanswerable"
      and _doubts(i)(question, int(image[0, 0, 0])) < -0.2231
    }
    assert {name for name, kind in after.kinds.items() if kind == "unsure"} == doubts
    assert after.answers == before.answers, "what they said is kept"
    assert after.agree == (before.agree and not doubts)
    assert after.disagreement == (before.disagreement and not doubts)
    lost += before.disagreement and not after.disagreement
  assert lost and any(v.disagreement for v in strict)


def test_only_short_replies_of_references_can_be_unsure(make_picture):
  def doubtful(text, finish="stop"):
    return FakeEndpoint(lambda *_: RawReply(text, finish, logprob=-9.0))

  says = lambda text: _talks(lambda *_: text)  # noqa: E731
  image, config = make_picture(1), BankConfig(abstentions=("unanswerable",), sure=0.5)
  for a, kinds in (
    (doubtful("It is blue."), {"a": "unsure"}),
    (doubtful("I cannot tell."), {"a": "abstention"}),
    (doubtful("The picture shows", "length"), {"a": "truncated"}),
    (says("blue"), {}),  # Unknown is sure.
  ):
    bank = ModelBank({"t": doubtful("red"), "a": a, "b": says("blue")}, "t", "ab", config=config)
    (found,) = bank.verdicts([image], ["what color is it?"])
    assert found.kinds == kinds and found.disagreement == (not kinds)
    assert bank.kinds["a"] == {kinds.get("a", "answer"): 1} and bank.kinds["t"] == {"answer": 1}


def test_eviction_does_not_change_answers(fake_vlm, make_picture):
  images, questions = _probes(make_picture)
  small = _bank(fake_vlm, feature_bytes=50, batch_size=5, dedup=False)
  assert small.answers(images, questions) == _bank(fake_vlm).answers(images, questions)
  assert small.cache.encoded.total() > 7


def test_questions_about_an_image_go_together(fake_vlm, make_picture):
  """However they are mixed, and where the cache has no room for a second batch's images."""
  images, questions = _probes(make_picture)
  bank = _bank(fake_vlm, feature_bytes=50, batch_size=5)
  assert bank.answers(images, questions) == _bank(fake_vlm).answers(images, questions)
  assert bank.cache.encoded.total() == 7


def test_towers_are_kept_apart(fake_vlm, make_picture):
  cache = FeatureCache(2**20)
  one, two = fake_vlm(_noisy(1), "one"), fake_vlm(_noisy(1), "two")
  for vlm in (one, two, one):
    cache.features(vlm, ["x"], lambda _: make_picture(3))
  assert one.encoded == two.encoded == 1


def test_loader_and_arrays_agree(fake_vlm, make_picture, tmp_path):
  images, questions = _probes(make_picture)
  store = Images(tmp_path)
  ids = [store.put(i) for i in images]
  bank, progress = _bank(fake_vlm, batch_size=32), []
  got = bank.answers(store.get, questions, image_ids=ids, progress=lambda *a: progress.append(a))
  assert got == _bank(fake_vlm).answers(images, questions)
  assert progress[-1] == (60, 60)
  with pytest.raises(ValueError, match="image_ids"):
    bank.answers(store.get, questions)


def test_wrong_names_are_refused(fake_vlm):
  vlms = {"t": fake_vlm(_noisy(1)), "a": fake_vlm(_noisy(2))}
  with pytest.raises(ValueError, match="no model named 'b'"):
    ModelBank(vlms, "t", ("a", "b"))
  with pytest.raises(ValueError, match="different"):
    ModelBank(vlms, "t", ("t",))
  with pytest.raises(ValueError, match="order"):
    ModelBank(vlms, "t", ("a",), config=BankConfig(order=("a",)))


def test_overhead_of_a_training_step_is_small(fake_vlm):
  """Little more than a hash of each picture and a verdict for each question."""
  bank = _bank(fake_vlm)
  pictures = [np.full((64, 64, 3), i, np.uint8) for i in range(16)]
  images = [p for p in pictures for _ in range(8)]
  questions = [f"what color is the {i}" for i in range(128)]
  said = bank.answers(images, questions)

  def least():
    for picture in pictures:
      Images.id_of(picture)
    for i, question in enumerate(questions):
      known = {name: answers[i] for name, answers in said.items()}
      verdict("", known, bank.judge, target="t", references=("a", "b"), question=question)

  def seconds(work):
    start = time.process_time()
    work()
    return time.process_time() - start

  turns = [(seconds(lambda: bank.verdicts(images, questions)), seconds(least)) for _ in range(7)]
  whole, part = (min(column) for column in zip(*turns))
  assert whole < 4 * part, turns


class FakeEndpoint:
  """Answers `rule(prompt, pixel)` -> Reply, by pictures."""

  takes = "pixels"

  def __init__(self, rule, style=styles.CHAT):
    self.rule, self.style, self.asked = rule, style, []

  def answer(self, images, prompts, *, max_new_tokens):
    self.asked += [(id(i), p, max_new_tokens) for i, p in zip(images, prompts, strict=True)]
    return [self.rule(p, int(i[0, 0, 0])) for i, p in zip(images, prompts)]


def _talks(rule):
  return FakeEndpoint(lambda prompt, pixel: RawReply(rule(prompt, pixel), "stop"))


def test_models_that_take_images_stand_beside_those_that_take_features(fake_vlm, make_picture):
  images, questions = _probes(make_picture)
  questions = [f"what color is {q}?" for q in questions]
  word = _noisy(2)
  vlms = {name: fake_vlm(_noisy(i)) for i, name in enumerate("tab")}
  local = ModelBank(vlms, "t", ("a", "b"))
  said = lambda prompt, pixel: f"It is {word(prompt.splitlines()[0], pixel)}."  # noqa: E731
  remote = FakeEndpoint(lambda *a: RawReply(said(*a).replace("It is unanswerable", "unanswerable")))
  bank = ModelBank(vlms | {"b": remote}, "t", ("a", "b"), config=BankConfig(batch_size=16))
  expected, got = local.answers(images, questions), bank.answers(images, questions)
  abstains = [x == "unanswerable" for x in expected["b"]]
  assert got["b"] == ["" if no else x for no, x in zip(abstains, expected["b"])]
  assert (got["t"], got["a"]) == (expected["t"], expected["a"])
  assert {new for _, _, new in remote.asked} == {styles.CHAT.max_new_tokens}
  assert all(prompt.endswith("single word or phrase.") for _, prompt, _ in remote.asked)
  assert len(remote.asked) == bank.computed["b"] and bank.kinds["b"]["abstention"] > 0


def test_a_picture_of_several_questions_is_one_object(make_picture):
  remote = _talks(lambda prompt, pixel: "red")
  bank = ModelBank({"t": remote, "a": _talks(lambda *_: "red")}, "t", ("a",))
  stored = {"x": 3, "y": 4}
  load = lambda image_id: make_picture(stored[image_id])  # noqa: E731  A new array at each call.
  bank.answers(load, ["q1", "q2", "q3"], image_ids=["x", "y", "x"])
  pictures = [i for i, _, _ in remote.asked]
  assert pictures[0] == pictures[1] != pictures[2]  # Side by side.


def test_what_is_no_answer_makes_neither_consensus_nor_contradiction(make_picture):
  replies = {
    "refusal": RawReply("I'm sorry, I can't help with that.", "stop"),
    "truncated": RawReply("The picture shows a", "length"),
    "thinking": RawReply("<think>Let me", "length"),
    "empty": RawReply(" ", "stop"),
    "failed": RawReply(None, failure="timeout"),
  }
  says = lambda text: _talks(lambda *_: text)  # noqa: E731
  for kind, reply in replies.items():
    silent = FakeEndpoint(lambda *_, reply=reply: reply)
    for place in ("t", "a", "b"):
      vlms = {"t": says("red"), "a": says("blue"), "b": says("Blue.")} | {place: silent}
      bank = ModelBank(vlms, "t", ("a", "b"))
      (verdict,) = bank.verdicts([make_picture(1)], ["what color is it?"])
      assert (verdict.agree, verdict.disagreement) == (False, False), (kind, place)
      assert verdict.reason == "no answer" and verdict.consensus is None
      assert verdict.kinds == {place: kind} and bank.kinds[place] == {kind: 1}
      assert verdict.answers[place] == ""
      thrifty = ModelBank(vlms, "t", ("a", "b"), config=BankConfig(cascade=True))
      assert not thrifty.verdicts([make_picture(1)], ["what color is it?"])[0].disagreement
  # A cascade asks nobody else once the target is silent.
  vlms = {"t": silent, "a": says("blue"), "b": says("blue")}
  bank = ModelBank(vlms, "t", ("a", "b"), config=BankConfig(cascade=True))
  bank.verdicts([make_picture(1)], ["what color is it?"])
  assert bank.computed == {"a": 1, "t": 1}


def test_a_model_that_cannot_tell_gives_the_bank_s_abstention(make_picture):
  says = lambda text: _talks(lambda *_: text)  # noqa: E731
  vlms = {"t": says("I cannot tell."), "a": says("blue"), "b": says("It is blue.")}
  ask_all = lambda vlms, **config: ModelBank(  # noqa: E731
    vlms, "t", ("a", "b"), config=BankConfig(**config)
  ).verdicts([make_picture(1)], ["what color is it?"])[0]
  found = ask_all(vlms, abstentions=("unanswerable",))
  assert found.disagreement and found.answers["t"] == "unanswerable"  # As a word of its own would.
  assert found.kinds == {"t": "abstention"} and found.raw["t"] == "I cannot tell."
  assert ask_all(vlms).reason == "no answer"
  vlms["a"] = vlms["b"] = vlms["t"]
  assert ask_all(vlms, abstentions=("unanswerable",)).reason == "abstention"


def test_what_was_said_is_kept_where_it_is_not_the_answer(make_picture):
  long = "x" * 10_000
  vlms = {
    "t": _talks(lambda *_: "The car is red."),
    "a": _talks(lambda *_: "blue"),
    "b": FakeEndpoint(lambda *_: RawReply(long, "stop"), style=styles.PLAIN),
  }
  (verdict,) = ModelBank(vlms, "t", ("a", "b")).verdicts(
    [make_picture(1)], ["What color is the car?"]
  )
  assert {k: v for k, v in verdict.answers.items() if k != "b"} == {"a": "blue", "t": "red"}
  kept = verdict.answers["b"]  # An answer that is taken whole is bounded too.
  assert set(kept.split(" … ")) == {long[: MAX_RAW // 2]} and len(kept) == MAX_RAW + 3
  assert verdict.raw["t"] == "The car is red." and "a" not in verdict.raw
  assert "b" not in verdict.raw  # It would say the same.
  assert Verdict.from_dict(verdict.to_dict()) == verdict
  before = {k: v for k, v in verdict.to_dict().items() if k not in ("raw", "kinds")}
  assert Verdict.from_dict(before).answers == verdict.answers  # A record of an older run.


def test_one_word_answers_of_plain_models_are_untouched(fake_vlm, make_picture):
  words = ["Red.", "a", "no, thanks", "I cannot tell", "**x**", "3 ", "unanswerable"]
  vlms = {n: fake_vlm(lambda q, _: words[int(q)]) for n in "ta"}
  bank = ModelBank(vlms, "t", ("a",), config=BankConfig(abstentions=("unanswerable",)))
  questions = [str(i) for i in range(len(words))]
  verdicts = bank.verdicts([make_picture(1)] * len(words), questions)
  assert [v.answers["t"] for v in verdicts] == words and not any(v.raw for v in verdicts)
  assert bank.kinds["t"] == {"answer": 6, "abstention": 1}


def test_styles_are_config(fake_vlm):
  rows = (("gemma-1.5", "chat"), ("own", {"prefix": "Q: ", "max_new_tokens": 3}))
  config = build(BankConfig, {"styles": rows}, name="config.bank")
  assert config.style_of("gemma-1.5", styles.PLAIN) is styles.CHAT
  assert config.style_of("own", styles.PLAIN) == Style(prefix="Q: ", max_new_tokens=3)
  assert config.style_of("other", styles.PLAIN) is styles.PLAIN
  with pytest.raises(UserError, match="no style 'chatty'"):
    build(BankConfig, {"styles": (("a", "chatty"),)}, name="config.bank")
  seen = []
  vlm = fake_vlm(lambda q, _: seen.append(q) or "red")
  vlm.style = config.style_of("own", styles.PLAIN)
  (answer,) = ask(vlm, np.zeros((1, 2, 3)), ["what?"], config=config)
  assert seen == ["Q: what?"] and (answer.text, answer.kind) == ("red", "answer")


def test_an_endpoint_that_loses_replies_is_not_believed(make_picture):
  broken = FakeEndpoint(lambda *_: RawReply("red"))
  broken.answer = lambda images, prompts, *, max_new_tokens: []
  bank = ModelBank({"t": broken, "a": _talks(lambda *_: "red")}, "t", ("a",))
  with pytest.raises(ValueError, match="0 replies to 1 prompts"):
    bank.answers([make_picture(1)], ["q"])
