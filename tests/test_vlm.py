# SPDX-License-Identifier: Apache-2.0
"""A Vlm from a folder: answers, buckets, shared programs, tower identity."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
import tokenizers

from auditdm_jax import vlm as vlm_lib
from auditdm_jax.core import tree
from auditdm_jax.core.config import UserError
from auditdm_jax.core.mesh import make_mesh
from auditdm_jax.models import gemma, preprocess, siglip
from auditdm_jax.models import multimodal as mm
from auditdm_jax.models.preprocess import Pixels
from auditdm_jax.text import prompts
from auditdm_jax.text.tokenizer import Tokenizer
from auditdm_jax.vlm import Vlm, load_vlm, save_vlm

WORDS = "what is where the red blue round thing cup dish ? a b c d e".split()
TOKENIZER = Tokenizer.word_level(WORDS)
TEXT = gemma.GemmaConfig(
  vocab_size=TOKENIZER.vocab_size,
  width=12,
  depth=2,
  mlp_dim=16,
  num_heads=2,
  num_kv_heads=1,
  head_dim=6,
  window=4,
  layer_is_local=(True, False),
  embed_init_std=0.6,
)
VISION = siglip.SiglipConfig(width=8, depth=1, mlp_dim=12, num_heads=2, patch_size=4, image_size=8)
RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in range(4)]
QUESTIONS = [" ".join(RNG.choice(WORDS, n)) for n in (1, 14, 2, 6, 9, 3, 12, 4, 5, 1, 7)]


def make(kind, template, *, seed=0):
  cfg = mm.VlmConfig(kind, TEXT, VISION, TOKENIZER.image_id)
  params = jax.jit(mm.init, static_argnums=0)(cfg, jax.random.key(seed))
  return Vlm("tiny", cfg, params, TOKENIZER, template, (TOKENIZER.id("<eos>"), TOKENIZER.id("a")))


@pytest.fixture(scope="module", params=["paligemma", "gemma3"])
def vlm(request):
  # No newline at the end: an untrained model repeats what it read last, which should be a word.
  templates = {"paligemma": prompts.PALIGEMMA, "gemma3": prompts.GEMMA3_PLAIN}
  return make(request.param, templates[request.param].strip())


def test_answers_in_a_batch_equal_answers_one_by_one(vlm):
  images = [IMAGES[i % 4] for i in range(len(QUESTIONS))]
  together = vlm.answer(images, QUESTIONS, max_new_tokens=5)
  alone = [vlm.answer([i], [q], max_new_tokens=5)[0] for i, q in zip(images, QUESTIONS)]
  assert together == alone
  assert len(set(together)) > 1


def test_calls_larger_than_a_batch_are_cut(vlm, monkeypatch):
  images = [IMAGES[i % 4] for i in range(len(QUESTIONS))]
  whole = vlm.answer(images, QUESTIONS, max_new_tokens=5)
  monkeypatch.setattr(vlm_lib, "MAX_BATCH", 4)
  assert vlm.answer(images, QUESTIONS, max_new_tokens=5) == whole


def test_sampled_answers_depend_on_seed_and_row_only(vlm, monkeypatch):
  images = [IMAGES[0]] * 11
  ask = {"max_new_tokens": 5, "temperature": 1.5}
  first = vlm.answer(images, QUESTIONS, **ask, seed=1)
  assert first != vlm.answer(images, QUESTIONS, **ask, seed=2)
  monkeypatch.setattr(vlm_lib, "MAX_BATCH", 4)
  assert vlm.answer(images, QUESTIONS, **ask, seed=1) == first


def test_cached_features_answer_as_images_do(vlm):
  features = vlm.encode(IMAGES)
  assert features.shape == (4, 4, 8) and features.dtype == np.float32
  np.testing.assert_allclose(features[2:3], vlm.encode(IMAGES[2:3]), atol=1e-6)
  by_image = vlm.answer(IMAGES, QUESTIONS[:4], max_new_tokens=5)
  assert vlm.answer_features(features, QUESTIONS[:4], max_new_tokens=5) == by_image
  assert vlm.encode([]).shape == (0, 4, 8)
  assert vlm.answer([], [], max_new_tokens=3) == []


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


def test_folder_round_trip(vlm, tmp_path):
  save_vlm(tmp_path / "target", dataclasses.replace(vlm, extras={"seed": 3}))
  again = load_vlm(tmp_path / "target")
  extras = {"seed": 3, "origin": {"format": "native"}}
  assert (again.name, again.extras, again.stop_ids) == ("target", extras, vlm.stop_ids)
  assert again.cfg == vlm.cfg and again.tower_id == vlm.tower_id
  ask = (IMAGES, QUESTIONS[:4])
  assert again.answer(*ask, max_new_tokens=5) == vlm.answer(*ask, max_new_tokens=5)
  half = load_vlm(tmp_path / "target", dtype=jnp.bfloat16)
  assert half.cfg.text.dtype == "bfloat16"
  assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(half.params))
  assert len(half.answer(*ask, max_new_tokens=2)) == 4
  assert half.tower_id != vlm.tower_id


def test_a_mesh_changes_no_answer(vlm, tmp_path):
  save_vlm(tmp_path / "m", vlm)
  meshed = load_vlm(tmp_path / "m", mesh=make_mesh({"data": -1}))
  ask = (IMAGES, QUESTIONS[:4])
  assert meshed.answer(*ask, max_new_tokens=3) == vlm.answer(*ask, max_new_tokens=3)


def test_other_parameters_run_the_same_program(vlm):
  ask = (vlm.encode(IMAGES), QUESTIONS[:4])
  before = vlm.answer_features(*ask, max_new_tokens=4)
  size = vlm_lib.sample_answers._cache_size()
  tuned = vlm.with_params(jax.tree.map(lambda x: x * 1.3 + 0.1, vlm.params), name="tuned")
  twin = make(vlm.cfg.kind, vlm.template, seed=5)
  assert [v.answer_features(*ask, max_new_tokens=4) for v in (tuned, twin)] != [before, before]
  assert vlm_lib.sample_answers._cache_size() == size
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


def test_big_vision_npz(tmp_path):
  """The tokenizer lies beside the file and knows no image token, whose id has no row."""
  backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 3}, unk_token="<unk>"))
  backend.add_special_tokens(["<pad>", "<eos>", "<bos>"])
  backend.add_tokens([*WORDS, "\n"])
  backend.save(str(tmp_path / "tokenizer.json"))
  text = dataclasses.replace(TEXT, window=None, layer_is_local=(), vocab_size=40)
  text = dataclasses.replace(text, query_scale=6**-0.5, attn_softcap=50.0, final_softcap=30.0)
  cfg = mm.VlmConfig("paligemma", text, VISION, image_token_id=40)
  params = jax.jit(mm.init, static_argnums=0)(cfg, jax.random.key(2))
  np.savez(tmp_path / "x.npz", **{f"params/{k}": v for k, v in tree.flatten(params).items()})
  vlm = load_vlm(tmp_path / "x.npz")
  # What training began with is not in a checkpoint.
  text = dataclasses.replace(text, embed_init_std=vlm.cfg.text.embed_init_std)
  assert vlm.cfg == dataclasses.replace(cfg, text=text)
  assert vlm.extras["origin"]["format"] == "big_vision"
  assert (vlm.pixels, vlm.stop_ids) == (Pixels("big_vision"), (1,))
  assert vlm.template == prompts.PALIGEMMA
  image = RNG.integers(0, 256, (20, 31, 3), dtype=np.uint8)
  ids = prompts.render(vlm.tokenizer, vlm.template, "what is", 4)
  assert ids[:5] == [40] * 4 + [vlm.tokenizer.id("<bos>")]
  pixels = preprocess.preprocess([image], size=8, how=Pixels("big_vision"))
  first = int(vlm.logits(pixels, [ids])[0, -1].argmax())
  assert vlm.answer([image], ["what is"], max_new_tokens=1) == [vlm.tokenizer.decode([first])]


def test_images_of_any_kind_and_in_windows(vlm, tmp_path, monkeypatch):
  Image.fromarray(IMAGES[0]).save(tmp_path / "a.png")
  kinds = [IMAGES[0], Image.fromarray(IMAGES[0]), tmp_path / "a.png", str(tmp_path / "a.png")]
  got = vlm.answer([*kinds, [IMAGES[0]]], [QUESTIONS[1]] * 5, max_new_tokens=4)
  assert len(set(got)) == 1
  want = vlm.answer(IMAGES, QUESTIONS[:4], max_new_tokens=4, temperature=1.0)
  monkeypatch.setattr(vlm_lib, "_MEMORY", 1)  # Not more than one row at a time.
  assert vlm.answer(IMAGES, QUESTIONS[:4], max_new_tokens=4, temperature=1.0) == want


def test_rows_and_lengths_are_bucketed(vlm, monkeypatch):
  assert [vlm_lib.padded_length(n) for n in (1, 8, 9, 127, 129, 300, 1100)] == [
    8, 8, 16, 128, 144, 320, 1152
  ]  # fmt: skip
  assert all(vlm_lib.padded_length(n) < 1.125 * n + 8 for n in range(1, 3000))
  assert [vlm._bucket(n) for n in (1, 8, 9)] == [8, 8, 16]
  monkeypatch.setattr(vlm_lib, "_SMALL", 1)
  big = dataclasses.replace(vlm)
  assert [big._bucket(n) for n in (1, 2, 3, 9)] == [1, 2, 4, 16]
  sizes = (1, 1 << 28, 3 << 28, 1 << 40)
  assert [vlm_lib._fitting_rows(n, 1, 64) for n in sizes] == [64, 16, 4, 1]
  assert [vlm_lib._fitting_rows(n, 4, 256) for n in sizes] == [256, 64, 16, 1]


def test_a_model_that_is_not_small_decodes_split_and_answers_the_same(vlm, monkeypatch):
  want = vlm.answer(IMAGES[:2], QUESTIONS[:2], max_new_tokens=4)
  assert "layers" in vlm._decoding_params["llm"]
  monkeypatch.setattr(vlm_lib, "_SMALL", 1)
  big = dataclasses.replace(vlm)
  assert "layers" not in big._decoding_params["llm"]
  assert big.answer(IMAGES[:2], QUESTIONS[:2], max_new_tokens=4) == want


def test_errors_teach(vlm, tmp_path):
  with pytest.raises(UserError, match="2 images for 1 prompts"):
    vlm.answer(IMAGES[:2], ["what?"], max_new_tokens=1)
  with pytest.raises(UserError, match="prompts is one string, 'what'"):
    vlm.answer(None, "what", max_new_tokens=1)
  with pytest.raises(UserError, match="image 1 is float32"):
    vlm.answer([IMAGES[0], IMAGES[1] / np.float32(255)], ["a", "b"], max_new_tokens=1)
  plain = dataclasses.replace(vlm, template="<bos>{text}")
  with pytest.raises(UserError, match="has no {image}"):
    plain.answer(IMAGES[:1], ["what?"], max_new_tokens=1)
  text_only = dataclasses.replace(vlm, cfg=dataclasses.replace(vlm.cfg, vision=None))
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
    with pytest.raises(UserError, match=r"should be floats .*, \[N,8,8,3\]"):
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
  save_vlm(tmp_path / "m", vlm)
  config = tmp_path / "m" / "config.json"
  header = json.loads(config.read_text())
  for change, message in (
    ({"stop": None}, "needs a 'template' and a list 'stop'"),
    ({"stop": ["<eso>"]}, "did you mean '<eos>'"),
    ({"template": "<bos>"}, "needs one {text}"),
  ):
    config.write_text(json.dumps(header | change))
    with pytest.raises(UserError, match=message):
      load_vlm(tmp_path / "m")
  config.write_text(json.dumps(header))
  (tmp_path / "m" / "tokenizer.json").unlink()
  with pytest.raises(UserError, match="m: no tokenizer, none of tokenizer.json"):
    load_vlm(tmp_path / "m")
