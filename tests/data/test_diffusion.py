# SPDX-License-Identifier: Apache-2.0
"""The recipe of the diffusion model that draws scenes: it trains what the pipelines then run."""

import importlib.util
import pathlib
import sys

import numpy as np
import pytest

pytest.importorskip("diffusers")

from diffusers import FluxKontextPipeline  # noqa: E402
from diffusers.models.embeddings import apply_rotary_emb  # noqa: E402
from PIL import Image  # noqa: E402
import torch  # noqa: E402

from auditdm_jax.scenes import language, render, world  # noqa: E402

_FOLDER = pathlib.Path(__file__).parents[2] / "data" / "scenes" / "diffusion"
TINY = dict(steps=6, captions=2, edits=4, pool=4, every=2)


@pytest.fixture(scope="module")
def recipe():
  """The program, with its sibling on the path as when it is run."""
  sys.path.insert(0, str(_FOLDER))
  try:
    spec = importlib.util.spec_from_file_location("scenes_train", _FOLDER / "train.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Its dataclasses look themselves up.
    spec.loader.exec_module(module)
    yield module
  finally:
    sys.path.remove(str(_FOLDER))


@pytest.fixture(scope="module")
def codec(recipe):
  return recipe.make_codec(np.random.default_rng(0), scenes=600)


@pytest.fixture(scope="module")
def pipe(recipe, codec):
  torch.manual_seed(0)
  pipe = recipe.flux.pipeline(language.words(), codec, recipe.SIZES)
  recipe.look_at_source(pipe.transformer)
  return pipe


def test_the_codec_keeps_what_a_scene_says(recipe, codec):
  rng = np.random.default_rng(1)
  kept = 0
  for k in range(20):
    scene = world.sample_scene(rng)
    pixels = recipe._pixels(render.render(scene, k)[None])
    again = codec.decode(codec.encode(pixels).latents).sample[0].permute(1, 2, 0)
    image = ((again / 2 + 0.5).clamp(0, 1) * 255).round().byte().numpy()
    kept += render.parse(image) == scene
  assert kept >= 18


class _Seen(Exception):
  pass


def _inputs(transformer, call):
  """What the transformer is given first."""
  seen = {}

  def keep(_, args, kwargs):
    del args
    seen.update(kwargs)
    raise _Seen

  hook = transformer.register_forward_pre_hook(keep, with_kwargs=True)
  try:
    with torch.no_grad(), pytest.raises(_Seen):
      call()
  finally:
    hook.remove()
  return seen


@pytest.mark.parametrize("edits", [False, True])
def test_training_feeds_the_transformer_as_the_pipelines_do(recipe, pipe, edits):
  make = recipe.edit_example if edits else recipe.caption_example
  text, *images = make(np.random.default_rng(3))
  pool = recipe.Pool(pipe, np.random.default_rng(3), 1, edits=edits)
  row = torch.zeros(1, dtype=torch.long)
  ours = _inputs(pipe.transformer, lambda: recipe.loss(pipe, pool, row, row.bool()))
  kontext = FluxKontextPipeline(**pipe.components)
  kontext.set_progress_bar_config(disable=True)
  theirs = _inputs(
    pipe.transformer,
    lambda: kontext(
      image=[Image.fromarray(images[0])] if edits else None,
      prompt=[text],
      height=64,
      width=64,
      max_area=64 * 64,
      _auto_resize=False,
      max_sequence_length=recipe.TEXT,
    ),
  )
  for name in ("pooled_projections", "encoder_hidden_states"):
    torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)
  for name in ("img_ids", "txt_ids"):
    torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0)
  tokens = recipe.TOKENS * (2 if edits else 1)
  assert ours["hidden_states"].shape == theirs["hidden_states"].shape == (1, tokens, 160)
  sources = (x["hidden_states"][:, recipe.TOKENS :] for x in (ours, theirs))
  torch.testing.assert_close(*sources, rtol=1e-4, atol=1e-4)
  assert 0 <= ours["timestep"].item() <= 1 and theirs["timestep"].item() == 1


def test_the_right_velocity_has_no_loss(recipe, pipe):
  """The sampler takes noise at time 1 to an image at time 0 along noise minus image."""
  pool = recipe.Pool(pipe, np.random.default_rng(0), 3, edits=True)
  rows = torch.arange(3)
  torch.manual_seed(5)
  torch.rand(3)
  noise = torch.randn_like(pool.after)
  answer = torch.cat([noise - pool.after, torch.full_like(noise, 9.0)], 1)
  forward, pipe.transformer.forward = pipe.transformer.forward, lambda **_: (answer,)
  try:
    torch.manual_seed(5)
    assert recipe.loss(pipe, pool, rows, rows > 5).item() == 0
    torch.manual_seed(6)
    assert recipe.loss(pipe, pool, rows, rows > 5).item() > 0.5
  finally:
    pipe.transformer.forward = forward


def test_muon_makes_singular_values_equal(recipe):
  torch.manual_seed(0)
  for shape in ((2, 16, 48), (2, 48, 16)):
    values = torch.linalg.svdvals(recipe.orthogonal(torch.randn(shape)))
    assert 0.6 < values.min() and values.max() < 1.4


def test_a_head_looks_at_the_source_from_the_beginning(recipe, pipe):
  pool = recipe.Pool(pipe, np.random.default_rng(0), 2, edits=True)
  block, seen = pipe.transformer.transformer_blocks[0], {}
  hook = block.attn.norm_q.register_forward_hook(lambda *a: seen.setdefault("q", a[-1]))
  other = block.attn.norm_k.register_forward_hook(lambda *a: seen.setdefault("k", a[-1]))
  with torch.no_grad():
    recipe.loss(pipe, pool, torch.arange(2), torch.zeros(2, dtype=torch.bool))
  hook.remove(), other.remove()
  ids = torch.cat([recipe._positions(0, "cpu"), recipe._positions(1, "cpu")])
  turn = pipe.transformer.pos_embed(ids)
  q, k = (apply_rotary_emb(seen[x], turn, sequence_dim=1)[:, :, 0] for x in "qk")
  attention = torch.softmax(q[:, :16] @ k.mT / q.shape[-1] ** 0.5, -1)
  assert attention[:, range(16), range(16, 32)].mean() > 0.4  # 1/32 without.


def test_a_resumed_training_goes_on_where_it_was(recipe, tmp_path, monkeypatch):
  """Same examples, same rates, same state; torch promises no equal bits of what follows."""
  tiny, cpu = recipe.Recipe(**TINY), torch.device("cpu")
  make, step, loss = recipe.make_codec, recipe.Optimizer.step, recipe.loss
  monkeypatch.setattr(recipe, "make_codec", lambda rng: make(rng, scenes=60))
  runs, stop = [], []

  def spy_loss(pipe, pool, rows, empty):
    runs[-1].append(("loss", rows.tolist(), empty.tolist()))
    return loss(pipe, pool, rows, empty)

  def spy_step(self, **rates):
    runs[-1].append(("step", rates))
    if len(runs) == 3 and len(runs[-1]) == 3:  # The first of the resumed run.
      saved = torch.load(tmp_path / "resumed" / "checkpoint.pt", weights_only=True)
      assert saved["step"] == 2
      torch.testing.assert_close(self.weights, saved["weights"], rtol=0, atol=0)
      torch.testing.assert_close(self.momenta, saved["optimizer"]["momenta"], rtol=0, atol=0)
      moments = [x["exp_avg"] for x in saved["optimizer"]["adam"]["state"].values()]
      torch.testing.assert_close(
        [x["exp_avg"] for x in self.adam.state_dict()["state"].values()], moments, rtol=0, atol=0
      )
    if stop and len(runs[-1]) == 3 * stop[0]:
      raise KeyboardInterrupt
    step(self, **rates)

  monkeypatch.setattr(recipe, "loss", spy_loss)
  monkeypatch.setattr(recipe.Optimizer, "step", spy_step)
  runs.append([])
  recipe.train(tmp_path / "straight", tiny, cpu)
  runs.append([])
  stop.append(4)
  with pytest.raises(KeyboardInterrupt):
    recipe.train(tmp_path / "resumed", tiny, cpu)
  stop.clear()
  runs.append([])
  recipe.train(tmp_path / "resumed", tiny, cpu)
  straight, stopped, resumed = runs
  assert len(straight) == 3 * tiny.steps and stopped == straight[:12]
  assert resumed == straight[6:]  # Again from the checkpoint at step 2.
  assert (tmp_path / "resumed" / "pipeline" / "model_index.json").exists()
