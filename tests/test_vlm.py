# SPDX-License-Identifier: Apache-2.0
"""Answers of a Vlm: batched and alone, by shared programs; tower identity; logits."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from auditdm_jax import vlm_batching as batching
from auditdm_jax import vlm_programs as programs
from auditdm_jax.core.config import UserError
from auditdm_jax.models import multimodal
from auditdm_jax.text import prompts
from auditdm_jax.text.tokenizer import Tokenizer
from auditdm_jax.vlm import Prompt, load_vlm
from tests.tiny_vlm import TEXT, TOKENIZER, WORDS, make

WEIGHTS = pathlib.Path(__file__).parents[1] / "data/scenes/weights"

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in range(4)]
QUESTIONS = [" ".join(RNG.choice(WORDS, n)) for n in (1, 14, 2, 6, 9, 3, 12, 4, 5, 1, 7)]


@pytest.fixture(scope="module", params=["paligemma", "gemma3"])
def vlm(request):
  return make(request.param)


def test_answers_in_a_batch_equal_answers_one_by_one(vlm):
  images = [IMAGES[i % 4] for i in range(len(QUESTIONS))]
  together = vlm.answer(images, QUESTIONS, max_new_tokens=5)
  alone = [vlm.answer([i], [q], max_new_tokens=5)[0] for i, q in zip(images, QUESTIONS)]
  assert together == alone
  assert len(set(together)) > 1


def test_calls_larger_than_a_batch_are_cut(vlm, monkeypatch):
  images = [IMAGES[i % 4] for i in range(len(QUESTIONS))]
  whole = vlm.answer(images, QUESTIONS, max_new_tokens=5)
  monkeypatch.setattr(batching, "MAX_BATCH", 4)
  assert vlm.answer(images, QUESTIONS, max_new_tokens=5) == whole


def test_sampled_answers_depend_on_seed_and_row_only(vlm, monkeypatch):
  images = [IMAGES[0]] * 11
  ask = {"max_new_tokens": 5, "temperature": 1.5}
  first = vlm.answer(images, QUESTIONS, **ask, seed=1)
  assert first != vlm.answer(images, QUESTIONS, **ask, seed=2)
  monkeypatch.setattr(batching, "MAX_BATCH", 4)
  assert vlm.answer(images, QUESTIONS, **ask, seed=1) == first


def test_completions_of_a_batch_are_answers_to_each_alone(vlm):
  """Whatever the lengths, limits, temperatures, seeds and numbers of images beside it."""
  groups = [[0], [], [1, 2], [3], [0], []] * 2
  how = [
    {"max_new_tokens": n, "temperature": t, "seed": s}
    for n, t, s in zip((1, 5, 3, 8, 5, 2) * 2, (0, 1.5, 0.5, 0, 0, 0) * 2, range(12))
  ]
  asked = [
    Prompt(
      tuple(prompts.render(TOKENIZER, vlm.template, q, 4, images=len(g))), images=tuple(g), **h
    )
    for q, g, h in zip([*QUESTIONS, "cup"], groups, how)
  ]
  done = vlm.complete(vlm.encode(IMAGES), asked)
  for c, p, q, g, h in zip(done, asked, [*QUESTIONS, "cup"], groups, how):
    want = vlm.answer([[IMAGES[i] for i in g]], [q], **h)
    assert [TOKENIZER.decode(c.tokens).strip()] == want
    assert len(c.tokens) <= p.max_new_tokens
    assert c.truncated == (c.tokens[-1] not in vlm.stop_ids)
  assert len({c.truncated for c in done}) == 2, "some should stop and some should not"
  assert vlm.complete(None, []) == []
  with pytest.raises(UserError, match="token id 99"):
    vlm.complete(None, [Prompt((2, 99))])
  with pytest.raises(UserError, match="seed 2147483648"):
    vlm.complete(None, [Prompt((2,), seed=1 << 31)])


def test_temperatures_and_limits_share_a_program(vlm):
  ids = tuple(prompts.render(TOKENIZER, vlm.template, "what", 4, images=0))
  vlm.complete(None, [Prompt(ids, max_new_tokens=7, temperature=0.3)])
  size = programs.sample_answers._cache_size()
  for t, n in ((0.4, 8), (1.9, 5), (0.31, 6)):
    vlm.complete(None, [Prompt(ids, max_new_tokens=n, temperature=t, seed=3)])
  assert programs.sample_answers._cache_size() == size


def test_cached_features_answer_as_images_do(vlm):
  features = vlm.encode(IMAGES)
  assert features.shape == (4, 4, 8) and features.dtype == np.float32
  np.testing.assert_allclose(features[2:3], vlm.encode(IMAGES[2:3]), atol=1e-6)
  by_image = vlm.answer(IMAGES, QUESTIONS[:4], max_new_tokens=5)
  assert vlm.answer_features(features, QUESTIONS[:4], max_new_tokens=5) == by_image
  assert vlm.encode([]).shape == (0, 4, 8)
  assert vlm.answer([], [], max_new_tokens=3) == []


def test_other_parameters_run_the_same_program(vlm):
  ask = (vlm.encode(IMAGES), QUESTIONS[:4])
  before = vlm.answer_features(*ask, max_new_tokens=4)
  size = programs.sample_answers._cache_size()
  tuned = vlm.with_params(jax.tree.map(lambda x: x * 1.3 + 0.1, vlm.params), name="tuned")
  twin = make(vlm.config.kind, seed=5)
  assert [v.answer_features(*ask, max_new_tokens=4) for v in (tuned, twin)] != [before, before]
  assert programs.sample_answers._cache_size() == size
  assert tuned.name == "tuned"


def test_tower_id_is_of_the_tower_alone(vlm):
  llm = jax.tree.map(lambda x: x + 1, vlm.params["llm"])
  head = jax.tree.map(lambda x: x + 1, vlm.params["img"]["head"])
  params = {"llm": llm, "img": vlm.params["img"] | {"head": head}}
  assert vlm.with_params(params).tower_id == vlm.tower_id
  moved = vlm.params["img"] | {"pos_embedding": vlm.params["img"]["pos_embedding"] + 1}
  assert vlm.with_params(vlm.params | {"img": moved}).tower_id != vlm.tower_id


def test_logits_are_those_the_answers_come_from(vlm):
  pixels = np.stack(IMAGES[:2]).astype(np.float32) / 127.5 - 1
  rows = [prompts.render(TOKENIZER, vlm.template, q, 4) for q in ("what is red", "where")]
  length = max(map(len, rows))
  ids = np.array([[0] * (length - len(r)) + r for r in rows])
  mask = np.array([[False] * (length - len(r)) + [True] * len(r) for r in rows])
  logits = vlm.logits(pixels, ids, input_mask=mask)
  assert logits.shape == (2, length, TOKENIZER.vocab_size) and logits.dtype == jnp.float32
  logits = np.array(logits[:, -1])
  answers = vlm.answer(IMAGES[:2], ["what is red", "where"], max_new_tokens=1)
  assert [TOKENIZER.decode([i]) for i in logits.argmax(-1)] == answers


def test_images_of_any_kind_and_in_windows(vlm, tmp_path, monkeypatch):
  Image.fromarray(IMAGES[0]).save(tmp_path / "a.png")
  kinds = [IMAGES[0], Image.fromarray(IMAGES[0]), tmp_path / "a.png", str(tmp_path / "a.png")]
  got = vlm.answer([*kinds, [IMAGES[0]]], [QUESTIONS[1]] * 5, max_new_tokens=4)
  assert len(set(got)) == 1
  want = vlm.answer(IMAGES, QUESTIONS[:4], max_new_tokens=4, temperature=1.0)
  monkeypatch.setattr(batching, "MEMORY", 1)  # Not more than one row at a time.
  assert vlm.answer(IMAGES, QUESTIONS[:4], max_new_tokens=4, temperature=1.0) == want


def test_a_model_that_is_not_small_decodes_split_and_answers_the_same(vlm, monkeypatch):
  want = vlm.answer(IMAGES[:2], QUESTIONS[:2], max_new_tokens=4)
  assert "layers" in vlm._decoding_params["llm"]
  monkeypatch.setattr(multimodal, "SMALL", 1)
  big = dataclasses.replace(vlm)
  assert "layers" not in big._decoding_params["llm"]
  assert big.answer(IMAGES[:2], QUESTIONS[:2], max_new_tokens=4) == want


def test_an_image_is_read_once_for_all_questions_about_it(monkeypatch):
  """By a Gemma 3; on a mesh: tests/models/test_sharding.py."""
  monkeypatch.setattr(multimodal, "SMALL", 1)
  vlm, shapes = make("gemma3"), []
  vlm = dataclasses.replace(vlm, template=f"<bos>dish {vlm.template.removeprefix('<bos>')}")
  features, which = vlm.encode(IMAGES), [0, 1, 0, 0, 2, 0, 1, 0, 0, 2, 0]
  hot = {"max_new_tokens": 5, "temperature": 1.5, "seed": 3}
  # One each: nothing is shared.
  want = vlm.reply_features(features[which], QUESTIONS, max_new_tokens=5)
  drawn = vlm.reply_features(features[which], QUESTIONS, **hot)
  # For so short a prompt it does not pay.
  monkeypatch.setattr(batching, "_prompts_per_row", lambda *args, **how: 4)
  run = programs.sample_answers

  def watched(config, sc, params, seen, tokens, *rest):
    shapes.append((tokens.shape, rest[1].shape))
    return run(config, sc, params, seen, tokens, *rest)

  monkeypatch.setattr(programs, "sample_answers", watched)
  rows = [[i] for i in which]
  assert vlm.reply_features(features, QUESTIONS, which=rows, max_new_tokens=5) == want
  # Seven, two and two questions about three images.
  assert shapes == [((4, 8), (4, 4))]
  assert vlm.reply_features(features, QUESTIONS[:1], which=[[0]], max_new_tokens=5) == want[:1]
  assert vlm.reply_features(features, QUESTIONS, which=rows, **hot) == drawn


NEW = 12


def teacher_forced(vlm, features, which, questions, replies):
  """The log-probs of greedy completions by one full pass over each, terminator included."""
  ids = [tuple(prompts.render(TOKENIZER, vlm.template, q, 4)) for q in questions]
  asked = [Prompt(row, images=(i,), max_new_tokens=NEW) for row, i in zip(ids, which)]
  done = vlm.complete(features, asked)
  assert [TOKENIZER.decode(c.tokens).strip() for c in done] == [r.text for r in replies]
  rows = [p.ids + c.tokens for p, c in zip(asked, done)]
  tokens, valid = np.zeros((2, len(rows), max(map(len, rows))), np.int32)
  ar, said = np.zeros_like(tokens), np.zeros(tokens.shape, bool)
  for i, (row, c) in enumerate(zip(rows, done)):
    tokens[i, : len(row)], valid[i, : len(row)] = row, 1
    ar[i, len(row) - len(c.tokens) :], said[i, len(row) - len(c.tokens) : len(row)] = 1, True
  x = multimodal.hidden(
    vlm.config,
    vlm.params,
    features[which],
    tokens,
    valid=valid.astype(bool),
    ar=ar if vlm.config.kind == "paligemma" else None,
  )
  logp, _ = multimodal.token_logprobs(vlm.config, vlm.params, x[:, :-1], tokens[:, 1:])
  return np.where(said[:, 1:], logp, 0).sum(axis=1).tolist()


@pytest.mark.parametrize("shared", [False, True])
def test_the_log_prob_of_a_reply_is_that_of_a_full_pass(vlm, monkeypatch, shared):
  """Of ended and of cut ones; several questions may share the row of their image."""
  if shared:
    monkeypatch.setattr(multimodal, "SMALL", 1)
    if vlm.config.kind == "gemma3":
      monkeypatch.setattr(batching, "_prompts_per_row", lambda *args, **how: 4)
    template = f"<bos>dish {vlm.template.removeprefix('<bos>')}"
    vlm = dataclasses.replace(vlm, template=template)
  # Untrained models seldom say a terminator, but many words.
  vlm = dataclasses.replace(vlm, stop_ids=tuple(map(TOKENIZER.id, WORDS[::2])))
  rows, run = set(), programs.sample_answers

  def watched(*args):
    rows.add(args[6].shape[1])
    return run(*args)

  monkeypatch.setattr(programs, "sample_answers", watched)
  features, which = vlm.encode(IMAGES), [0, 1, 0, 0, 2, 0, 1, 0, 0, 2, 0]
  replies = vlm.reply_features(features, QUESTIONS, which=[[i] for i in which], max_new_tokens=NEW)
  assert rows == {4 if shared and vlm.config.kind == "gemma3" else 1}
  want = teacher_forced(vlm, features, which, QUESTIONS, replies)
  np.testing.assert_allclose([r.logprob for r in replies], want, atol=2e-4)
  assert {r.finish for r in replies} == {"stop", "length"} and len(set(want)) > 5


def test_the_state_before_a_reply_is_that_of_the_prompt_alone(vlm):
  """Against one full pass over each, unpadded."""
  features, which = vlm.encode(IMAGES), [i % 4 for i in range(len(QUESTIONS))]
  found = vlm.states(features, QUESTIONS, which=which)
  for question, own, state in zip(QUESTIONS, which, found, strict=True):
    ids = prompts.render(TOKENIZER, vlm.template, question, 4)
    tokens = np.array([ids], np.int32)
    x = multimodal.hidden(
      vlm.config, vlm.params, features[[own]], tokens, valid=np.ones(tokens.shape, bool)
    )
    np.testing.assert_allclose(state, x[0, -1], atol=1e-5)
  with pytest.raises(UserError, match="1 images for 2 prompts"):
    vlm.states(features, QUESTIONS[:2], which=[0])


@pytest.mark.parametrize("name", ["auditor", "ref_paligemma2"])
def test_what_else_is_read_changes_no_bit_of_a_state(name):
  """Or a run that is killed would go on as another one."""
  vlm = load_vlm(WEIGHTS / name)
  images = [RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(7)]
  features, which = vlm.encode(images), RNG.integers(7, size=150)
  asked = ("what color is the object at row two column three", "how many red circles are there")
  questions = [asked[i] for i in RNG.integers(2, size=150)]
  whole = vlm.states(features, questions, which=which)
  for some in (slice(1), slice(3, 20), slice(20, 100), RNG.permutation(150)):
    few = vlm.states(features, np.array(questions)[some].tolist(), which=which[some])
    np.testing.assert_array_equal(few, whole[some])


def test_errors_teach(vlm):
  with pytest.raises(UserError, match="2 images for 1 prompts"):
    vlm.answer(IMAGES[:2], ["what?"], max_new_tokens=1)
  with pytest.raises(UserError, match="prompts is one string, 'what'"):
    vlm.answer(None, "what", max_new_tokens=1)
  with pytest.raises(UserError, match="image 1 is float32"):
    vlm.answer([IMAGES[0], IMAGES[1] / np.float32(255)], ["a", "b"], max_new_tokens=1)
  plain = dataclasses.replace(vlm, template="<bos>{text}")
  with pytest.raises(UserError, match="has no {image}"):
    plain.answer(IMAGES[:1], ["what?"], max_new_tokens=1)
  text_only = dataclasses.replace(vlm, config=dataclasses.replace(vlm.config, vision=None))
  for ask in (
    lambda: text_only.answer(IMAGES[:1], ["what?"], max_new_tokens=1),
    lambda: text_only.logits(np.zeros((1, 8, 8, 3)), [[10]]),
  ):
    with pytest.raises(UserError, match="'tiny' has no vision tower"):
      ask()
  with pytest.raises(UserError, match=r"\[1\] image slots, 1 images need 4 each"):
    vlm.logits(np.zeros((1, 8, 8, 3)), np.array([[TOKENIZER.image_id, 10]]))
  with pytest.raises(UserError, match="prompt '' has no tokens in the template '{text}'"):
    dataclasses.replace(vlm, template="{text}").answer(None, ["a", ""], max_new_tokens=1)
  with pytest.raises(UserError, match="seed 2147483648: expected"):
    vlm.answer(None, ["a"], max_new_tokens=1, seed=1 << 31)
  ids = np.array([[*[TOKENIZER.image_id] * 4, 10]])
  for pixels in (np.zeros((1, 3, 8, 8)), np.zeros((1, 8, 8, 3), np.uint8), np.zeros((8, 8, 3))):
    with pytest.raises(UserError, match=r"should be floats .*, \[U,8,8,3\]"):
      vlm.logits(pixels, ids)
  with pytest.raises(UserError, match=r"mask_ar \(1, 3\): should be \(2, 2\), as input_ids"):
    vlm.logits(None, [[2, 3], [2, 3]], mask_ar=np.ones((1, 3)))
  for i in (-1, TEXT.vocab_size, 1 << 40):
    with pytest.raises(
      UserError, match=rf"token id {i}: model 'tiny' has 0 to {TEXT.vocab_size - 1}"
    ):
      vlm.logits(None, [[2, i]])
  larger = dataclasses.replace(vlm, tokenizer=Tokenizer.word_level([*WORDS, "new"]))
  with pytest.raises(UserError, match=f"token id {TEXT.vocab_size}: model 'tiny' has"):
    larger.answer(None, ["what is new"], max_new_tokens=1)
  assert larger.answer(None, ["what is"], max_new_tokens=1)[0]


def test_a_reply_says_whether_it_ended(vlm):
  features = vlm.encode([IMAGES[i % 4] for i in range(len(QUESTIONS))])
  whole, seen = vlm.reply_features(features, QUESTIONS, max_new_tokens=24), set()
  for new in (2, 12):
    short = vlm.reply_features(features, QUESTIONS, max_new_tokens=new)
    assert [r.text for r in short] == vlm.answer_features(features, QUESTIONS, max_new_tokens=new)
    for a, b in zip(short, whole):
      # What ended, ends the same way with more room; what was cut, goes on or had just ended.
      assert (a == b) if a.finish == "stop" else b.text.startswith(a.text)
      seen.add((a.finish, a.text == b.text))
  assert ("stop", True) in seen and ("length", False) in seen
