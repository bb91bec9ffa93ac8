# SPDX-License-Identifier: Apache-2.0
"""Folders that transformers wrote, through `load_vlm`: answers and logits are transformers'."""

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest

from auditdm_jax.core.config import UserError
from auditdm_jax.core.mesh import make_mesh
from auditdm_jax.models import preprocess
from auditdm_jax.models.preprocess import Pixels
from auditdm_jax.text import prompts, styles
from auditdm_jax.text.tokenizer import Tokenizer
from auditdm_jax.vlm import load_vlm, save_vlm

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WORDS = [f"w{i}" for i in range(60)] + ["user", "model", "what", "is", "red", "?"]
TOKENIZER = Tokenizer.word_level(WORDS)
IMAGE = TOKENIZER.image_id
TEXT = dict(
  vocab_size=TOKENIZER.vocab_size,
  hidden_size=16,
  intermediate_size=24,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=6,
  sliding_window=7,
  max_position_embeddings=256,
)
VISION = dict(
  hidden_size=12,
  intermediate_size=20,
  num_hidden_layers=1,
  num_attention_heads=3,
  image_size=16,
  patch_size=4,
  vision_use_head=False,
)


def gemma3():
  config = transformers.Gemma3Config(
    text_config=TEXT
    | dict(layer_types=["sliding_attention", "full_attention"] * 2)
    | dict(num_hidden_layers=4, rope_scaling={"rope_type": "linear", "factor": 8.0}),
    vision_config=VISION,
    mm_tokens_per_image=4,
    image_token_index=IMAGE,
  )
  return transformers.Gemma3ForConditionalGeneration(config)


def paligemma2():
  text = TEXT | dict(model_type="gemma2", attn_logit_softcapping=0.7, final_logit_softcapping=2.0)
  config = transformers.PaliGemmaConfig(
    text_config=text, vision_config=VISION, projection_dim=16, image_token_index=IMAGE
  )
  return transformers.PaliGemmaForConditionalGeneration(config)


def paligemma1():
  text = {k: v for k, v in TEXT.items() if k != "sliding_window"} | dict(model_type="gemma")
  config = transformers.PaliGemmaConfig(
    text_config=text, vision_config=VISION, projection_dim=16, image_token_index=IMAGE
  )
  return transformers.PaliGemmaForConditionalGeneration(config)


def save(model, folder, *, stop=(1,)):
  """Writes a folder as a release has it, with weights large enough that logits are not flat."""
  torch.manual_seed(1)
  with torch.no_grad():
    for name, p in model.eval().named_parameters():
      std = 0.4 if "norm" in name else 1.5 * p.shape[-1] ** -0.5
      p.normal_(0.0, 0.5 if "embed_tokens" in name else std)
  model.generation_config.eos_token_id = list(stop)
  model.save_pretrained(folder)
  TOKENIZER.save(folder)
  return model


@pytest.fixture(scope="module", params=[gemma3, paligemma2, paligemma1], ids=lambda f: f.__name__)
def pair(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp(request.param.__name__)
  model = save(request.param(), folder, stop=(1, 17, 43))
  return model, load_vlm(folder), folder


RNG = np.random.default_rng(0)
PICTURES = [
  RNG.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((16, 16), (40, 9), (7, 30), (50, 50))
]
QUESTIONS = [" ".join(RNG.choice(WORDS, n)) for n in (3, 19, 1, 8, 27, 5)]


def generate(model, vlm, groups, questions, max_new_tokens):
  """What transformers answers, from left-padded prompts in one batch."""
  slots = vlm.config.num_image_tokens
  rows = [
    prompts.render(TOKENIZER, vlm.template, q, slots, images=len(g))
    for g, q in zip(groups, questions)
  ]
  length = max(map(len, rows))
  ids = np.array([[0] * (length - len(r)) + r for r in rows])
  mask = np.array([[0] * (length - len(r)) + [1] * len(r) for r in rows])
  # As the processors say it: PaliGemma's whole prompt is prefix, Gemma 3's images are blocks.
  kinds = ids == IMAGE if vlm.config.kind == "gemma3" else np.zeros_like(ids)
  extra = {"token_type_ids": torch.tensor(kinds).long()}
  if any(groups):
    flat = [image for group in groups for image in group]
    size = vlm.config.vision.image_size
    pixels = preprocess.preprocess(flat, size=size, how=vlm.pixels)
    extra["pixel_values"] = torch.tensor(pixels).permute(0, 3, 1, 2)
  with torch.no_grad():
    out = model.generate(
      input_ids=torch.tensor(ids),
      attention_mask=torch.tensor(mask),
      do_sample=False,
      max_new_tokens=max_new_tokens,
      pad_token_id=0,
      **extra,
    )
  return [TOKENIZER.decode(row).strip() for row in out[:, length:].tolist()]


def test_greedy_answers_are_those_of_transformers(pair):
  model, vlm, _ = pair
  images = [PICTURES[i % 4] for i in range(6)]
  want = generate(model, vlm, [[i] for i in images], QUESTIONS, 64)
  assert vlm.answer(images, QUESTIONS, max_new_tokens=64) == want
  lengths = [len(text.split()) for text in want]
  assert max(lengths) > 55 and min(lengths) < 40, "some rows should stop and some should not"
  assert len(set(want)) > 4
  alone = vlm.answer(images[1:2], QUESTIONS[1:2], max_new_tokens=64)
  assert alone == want[1:2]


def test_several_images_and_none(pair):
  model, vlm, folder = pair
  if "paligemma1" in folder.name:
    pytest.skip("as paligemma2")
  groups = [[], PICTURES[1:3], [], [PICTURES[0]] * 2]
  got = vlm.answer(groups, QUESTIONS[:4], max_new_tokens=12)
  # transformers wants images in all rows of a PaliGemma batch or in none.
  for count in (0, 2):
    rows = [i for i, g in enumerate(groups) if len(g) == count]
    want = generate(model, vlm, [groups[i] for i in rows], [QUESTIONS[i] for i in rows], 12)
    assert [got[i] for i in rows] == want, f"{count} images"
  assert vlm.answer(None, QUESTIONS[:2], max_new_tokens=12) == [
    got[0],
    *vlm.answer([None], QUESTIONS[1:2], max_new_tokens=12),
  ]


def test_logits_of_rows_with_different_numbers_of_images(pair):
  model, vlm, _ = pair
  slots = [IMAGE] * vlm.config.num_image_tokens
  rows = [[2, *slots, 12, *slots, 13], [2, 20, 21, 22], [2, 14, *slots, 15, 16]]
  if vlm.config.kind == "paligemma":
    rows[1] = [2, *slots, 20]
  width = max(map(len, rows))
  pixels = preprocess.preprocess(PICTURES, size=16, how=vlm.pixels)
  pixels = pixels[: sum(r.count(IMAGE) for r in rows) // len(slots)]
  for side in ("left", "right"):
    pad = [[0] * (width - len(r)) for r in rows]
    ids = np.array([p + r if side == "left" else r + p for p, r in zip(pad, rows)])
    mask = ids != 0
    kinds = ids == IMAGE if vlm.config.kind == "gemma3" else np.zeros_like(ids)
    with torch.no_grad():
      want = model(
        input_ids=torch.tensor(ids),
        attention_mask=torch.tensor(mask).long(),
        token_type_ids=torch.tensor(kinds).long(),
        pixel_values=torch.tensor(pixels).permute(0, 3, 1, 2),
      ).logits.numpy()
    got = np.asarray(vlm.logits(pixels, ids, input_mask=mask))
    assert got.dtype == np.float32 and got.shape == want.shape
    assert np.abs(got - want)[mask].max() < 2e-4, side


def test_text_only_logits(pair):
  model, vlm, _ = pair
  ids = RNG.integers(10, 60, (2, 30))
  ids[0, 3:5] = IMAGE  # Without images it is a token like any other.
  kinds = torch.zeros(2, 30).long()
  with torch.no_grad():
    want = model(
      input_ids=torch.tensor(ids), attention_mask=torch.ones(2, 30), token_type_ids=kinds
    ).logits.numpy()
  got = vlm.logits(None, jnp.asarray(ids))
  np.testing.assert_allclose(got, want, atol=2e-4)
  causal = vlm.logits(None, ids, mask_ar=np.ones_like(ids))
  assert np.allclose(causal, got, atol=1e-5) == (vlm.config.kind == "gemma3")


def test_slots_and_images_must_match(pair):
  _, vlm, _ = pair
  slots = [IMAGE] * vlm.config.num_image_tokens
  pixels = np.zeros((1, 16, 16, 3), np.float32)
  for images, row in ((pixels, [2, *slots[1:]]), (pixels, [2, 5]), (pixels[:0], [2, *slots])):
    with pytest.raises(UserError, match="image slots"):
      vlm.logits(images, np.array([row]))
  with pytest.raises(UserError, match=r"both should be \[B,T\]"):
    vlm.logits(None, np.array([2, 3]))


def test_the_ways_of_the_origin_survive_our_folder(pair, tmp_path):
  _, vlm, folder = pair
  kind = vlm.config.kind
  assert vlm.pixels == Pixels("hf", resample="bilinear" if kind == "gemma3" else "bicubic")
  assert vlm.template == (prompts.GEMMA3 if kind == "gemma3" else prompts.PALIGEMMA)
  turn = (vlm.tokenizer.id("<end_of_turn>"),) if kind == "gemma3" else ()
  assert vlm.stop_ids == (1, 17, 43, *turn)
  save_vlm(tmp_path / "ours", vlm)
  assert (tmp_path / "ours/generation_config.json").is_file()
  again = load_vlm(tmp_path / "ours")
  assert (again.pixels, again.template) == (vlm.pixels, vlm.template)
  assert (again.stop_ids, again.config) == (vlm.stop_ids, vlm.config)
  assert vlm.style == (styles.CHAT if kind == "gemma3" else styles.PALIGEMMA) == again.style
  ask = ([PICTURES[1]], [QUESTIONS[0]])
  assert again.answer(*ask, max_new_tokens=8) == vlm.answer(*ask, max_new_tokens=8)
  # What config.json says goes before what the origin does.
  config = tmp_path / "ours/config.json"
  header = json.loads(config.read_text())
  header |= {"template": "{image}{text}", "pixels": {"origin": "big_vision", "antialias": False}}
  header["style"] = "bare"
  config.write_text(json.dumps(header | {"stop": ["<eos>", 5]}))
  other = load_vlm(tmp_path / "ours")
  assert (other.template, other.stop_ids) == ("{image}{text}", (1, 5))
  assert other.pixels == Pixels("big_vision", antialias=False) and other.style is styles.BARE
  config.write_text(json.dumps(header | {"pixels": {"orgin": "hf"}}))
  with pytest.raises(UserError, match="did you mean 'origin'"):
    load_vlm(tmp_path / "ours")


def test_a_mesh_changes_no_answer(pair):
  _, vlm, folder = pair
  if vlm.config.kind == "paligemma":
    pytest.skip("one kind is enough")
  meshed = load_vlm(folder, mesh=make_mesh({"fsdp": -1, "tensor": 1}))
  ask = (PICTURES[:3], QUESTIONS[:3])
  assert meshed.answer(*ask, max_new_tokens=4) == vlm.answer(*ask, max_new_tokens=4)


def test_a_folder_without_tokenizer_has_logits(tmp_path):
  save(gemma3(), tmp_path)
  (tmp_path / "tokenizer.json").unlink()
  vlm = load_vlm(tmp_path)
  assert vlm.logits(None, np.array([[2, 20, 21]])).shape == (1, 3, TOKENIZER.vocab_size)
  with pytest.raises(UserError, match="has no tokenizer: none of tokenizer.json, tokenizer.model"):
    vlm.answer([None], ["what"], max_new_tokens=1)
  (tmp_path / "preprocessor_config.json").write_text('{"do_pan_and_scan": true}')
  with pytest.raises(UserError, match="do_pan_and_scan"):
    load_vlm(tmp_path)
