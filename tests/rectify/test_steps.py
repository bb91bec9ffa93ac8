# SPDX-License-Identifier: Apache-2.0
"""Five steps of a fine-tuning are those of big_vision's own trainer, from the goldens beside.

`goldens/make.py` makes them with an unmodified big_vision, at a small PaliGemma 2. The learning
rates are the transfers' own, about 1e-5, so that no parameter moves by more than 1e-4: it is the
moves that are compared.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from auditdm_jax.core import tree
from auditdm_jax.models import gemma, multimodal, siglip
from auditdm_jax.rectify import recipes, supervised, tuning

GOLDENS = pathlib.Path(__file__).parent / "goldens"
TRANSFERS = ("vqav2", "chartqa", "refcoco", "gqa-448", "forkme")
PATCHES, VOCAB, SLOT = 16, 96, 96
CONFIG = multimodal.VlmConfig(
  kind="paligemma",
  text=gemma.GemmaConfig(
    vocab_size=VOCAB,
    width=16,
    depth=2,
    mlp_dim=32,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    attn_softcap=50.0,
    final_softcap=30.0,
  ),
  vision=siglip.SiglipConfig(
    width=8, depth=2, mlp_dim=16, num_heads=2, patch_size=4, image_size=16
  ),
  image_token_id=SLOT,
)


@functools.cache
def goldens() -> dict[str, np.ndarray]:
  with np.load(GOLDENS / "steps.npz") as file:
    return dict(file)


def params() -> Any:
  found = goldens()
  return tree.unflatten({k[7:]: x for k, x in found.items() if k.startswith("before/")})


def batch_of(name: str, step: int, *, tower: bool) -> supervised.Batch:
  """Returns our rows of big_vision's arrays: what is padding there, is invalid here."""
  found = goldens()
  text, ar, loss, images = (
    found[f"{name}/{key}"][step] for key in ("text", "mask_ar", "mask_loss", "image")
  )
  b, t = text.shape
  ends = (loss * np.arange(t)).argmax(1)  # Of <eos>, which is predicted and not fed.
  slots = np.full((b, PATCHES), SLOT)
  count = int(loss.sum(1).max())
  position, targets = np.zeros((2, b, count), np.int32)
  for i in range(b):
    at = np.flatnonzero(loss[i])
    position[i, : len(at)], targets[i, : len(at)] = PATCHES + at - 1, text[i, at]
  if not tower:
    images = multimodal.encode_images(CONFIG, params(), images / np.float32(127.5) - 1)
  return supervised.Batch(
    images=jnp.asarray(images),
    image=None,
    tokens=np.concatenate([slots, text[:, :-1]], 1).astype(np.int32),
    valid=np.arange(PATCHES + t - 1) < PATCHES + ends[:, None],
    ar=np.concatenate([0 * slots, ar[:, :-1]], 1).astype(np.int32),
    position=position,
    targets=targets,
    mask=np.arange(count) < loss.sum(1)[:, None],
  )


@pytest.fixture(autouse=True)
def _keys_of_big_vision(monkeypatch):
  """The dropout of each step draws from the keys that big_vision's draws from."""

  def noise(self, config, step, micro):
    if not self.dropout:
      return None
    keys = jax.random.wrap_key_data(jnp.asarray(goldens()["dropout_keys"])[step])
    return gemma.Dropout(keys, self.dropout)

  monkeypatch.setattr(supervised.Method, "noise", noise)


def run(name: str, **changed: Any) -> tuple[list[float], list[float], dict[str, np.ndarray]]:
  """Takes five steps and returns their losses, norms of gradients, and the last parameters."""
  recipe = dataclasses.replace(recipes.get(name), steps=5, batch_size=4, **changed)
  tower = tuning.trains_tower(recipe, params())
  tune = tuning.Tuning(CONFIG, recipe, steps=5)
  state, losses, norms = tune.init(params()), [], []
  for step in range(5):
    state, m = tune.update(state, batch_of(name, step, tower=tower))
    losses.append(float(m["loss"]))
    norms.append(float(m["grad_norm"]))
  return losses, norms, tree.flatten(jax.device_get(state.params))


def check(name: str, **changed: Any) -> None:
  """Fails unless the five steps are big_vision's."""
  found = goldens()
  losses, norms, after = run(name, **changed)
  np.testing.assert_allclose(losses, found[f"{name}/training_loss"], rtol=1e-5)
  np.testing.assert_allclose(norms, found[f"{name}/l2_grads"], rtol=1e-5)
  for path, got in after.items():
    before = found[f"before/{path}"]
    want = found.get(f"{name}/after/{path}", before)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6, err_msg=path)
    moved, wanted = got - before, want - before
    error = np.linalg.norm(moved - wanted) / max(np.linalg.norm(wanted), 1e-30)
    print(name, path, float(np.abs(got - want).max()), float(error))


@pytest.mark.parametrize("name", TRANSFERS)
def test_five_steps_are_those_of_big_vision(name):
  check(name)
