# SPDX-License-Identifier: Apache-2.0
"""A Vlm goes into a folder and comes back; what is no model teaches."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from auditdm_jax.core import tree
from auditdm_jax.core.config import UserError
from auditdm_jax.core.mesh import make_mesh
from auditdm_jax.models import multimodal as mm
from auditdm_jax.models import preprocess
from auditdm_jax.models.preprocess import Pixels
from auditdm_jax.text import prompts
from auditdm_jax.vlm import load_vlm, save_vlm
from tests import drawn
from tests.tiny_vlm import TEXT, VISION, WORDS, make

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in range(4)]
QUESTIONS = [" ".join(RNG.choice(WORDS, n)) for n in (1, 14, 2, 6)]


@pytest.fixture(scope="module", params=["paligemma", "gemma3"])
def vlm(request):
  return make(request.param)


def test_folder_round_trip(vlm, tmp_path):
  save_vlm(tmp_path / "target", dataclasses.replace(vlm, extras={"seed": 3}))
  again = load_vlm(tmp_path / "target")
  extras = {"seed": 3, "origin": {"format": "native"}}
  assert (again.name, again.extras, again.stop_ids) == ("target", extras, vlm.stop_ids)
  assert again.config == vlm.config and again.tower_id == vlm.tower_id
  ask = (IMAGES, QUESTIONS)
  assert again.answer(*ask, max_new_tokens=5) == vlm.answer(*ask, max_new_tokens=5)
  half = load_vlm(tmp_path / "target", dtype=jnp.bfloat16)
  assert half.config.text.dtype == "bfloat16"
  assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(half.params))
  assert len(half.answer(*ask, max_new_tokens=2)) == 4
  assert half.tower_id != vlm.tower_id


def test_a_mesh_changes_no_answer(vlm, tmp_path):
  save_vlm(tmp_path / "m", vlm)
  meshed = load_vlm(tmp_path / "m", mesh=make_mesh({"data": -1}))
  ask = (IMAGES, QUESTIONS)
  assert meshed.answer(*ask, max_new_tokens=3) == vlm.answer(*ask, max_new_tokens=3)


def test_big_vision_npz(tmp_path):
  """The tokenizer lies beside the file and knows no image token, whose id has no row."""
  backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 3}, unk_token="<unk>"))
  backend.add_special_tokens(["<pad>", "<eos>", "<bos>"])
  backend.add_tokens([*WORDS, "\n"])
  backend.save(str(tmp_path / "tokenizer.json"))
  text = dataclasses.replace(TEXT, window=None, layer_is_local=(), vocab_size=40)
  text = dataclasses.replace(text, query_scale=6**-0.5, attn_softcap=50.0, final_softcap=30.0)
  config = mm.VlmConfig("paligemma", text, VISION, image_token_id=40)
  params = drawn.params(config, 2)
  np.savez(tmp_path / "x.npz", **{f"params/{k}": v for k, v in tree.flatten(params).items()})
  vlm = load_vlm(tmp_path / "x.npz")
  # What training began with is not in a checkpoint.
  text = dataclasses.replace(text, embed_init_std=vlm.config.text.embed_init_std)
  assert vlm.config == dataclasses.replace(config, text=text)
  assert vlm.extras["origin"]["format"] == "big_vision"
  assert (vlm.pixels, vlm.stop_ids) == (Pixels("big_vision"), (1,))
  assert vlm.template == prompts.PALIGEMMA
  image = RNG.integers(0, 256, (20, 31, 3), dtype=np.uint8)
  ids = prompts.render(vlm.tokenizer, vlm.template, "what is", 4)
  assert ids[:5] == [40] * 4 + [vlm.tokenizer.id("<bos>")]
  pixels = preprocess.preprocess([image], size=8, how=Pixels("big_vision"))
  first = int(vlm.logits(pixels, [ids])[0, -1].argmax())
  assert vlm.answer([image], ["what is"], max_new_tokens=1) == [vlm.tokenizer.decode([first])]


def test_a_folder_that_is_no_model(vlm, tmp_path):
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
  with pytest.raises(UserError, match="m/tokenizer.json: no such file"):
    load_vlm(tmp_path / "m")
  (tmp_path / "m" / "SHA256SUMS").unlink()
  with pytest.raises(UserError, match="m: no tokenizer, none of tokenizer.json"):
    load_vlm(tmp_path / "m")
