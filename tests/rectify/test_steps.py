# SPDX-License-Identifier: Apache-2.0
"""Five steps of a fine-tuning are those of big_vision's own trainer, from the goldens beside.

`goldens/make.py` makes them with an unmodified big_vision, at a small PaliGemma 2. The learning
rates are the transfers' own, about 1e-5, so that no parameter moves by more than 1e-4: it is the
moves that are compared.
"""

import dataclasses
import functools
import json
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from auditdm_jax.core import masked, tree
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
    unroll=2,  # So that the layers are in a list in the steps without dropout.
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
  for path, got in after.items():
    before = found[f"before/{path}"]
    want = found.get(f"{name}/after/{path}", before)  # Only what moved is stored.
    if path.endswith("/key/bias"):
      # It moves all logits of a query alike, so that its gradient is rounding, which Adam enlarges.
      continue
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5, err_msg=path)
    error, size = np.linalg.norm(got - want), np.linalg.norm(want - before)
    assert error <= 2e-3 * size, f"{path}: {error / size:.2g} of the move"
  np.testing.assert_allclose(norms, found[f"{name}/l2_grads"], rtol=1e-5)


@pytest.mark.parametrize("name", TRANSFERS)
def test_five_steps_are_those_of_big_vision(name):
  check(name)


def _token_mean(x, mask, *, axis):
  return jnp.full(len(x), jnp.sum(jnp.where(mask, x, 0)) / jnp.sum(mask))


def _smoothed_over_all(logits, targets, smoothing):
  nll = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
  spread = jax.nn.logsumexp(logits, -1) - logits.mean(-1)
  return (1 - smoothing) * nll + smoothing * spread


def _clip_last(recipe, steps):
  return optax.chain(
    optax.scale_by_adam(),
    optax.clip_by_global_norm(recipe.clip),
    optax.scale_by_schedule(tuning.schedule(recipe, steps)),
    optax.scale(-recipe.lr),
  )


def _patches() -> dict[str, tuple[str, list[tuple[Any, str, Any]], dict[str, Any]]]:
  """Returns differences from big_vision: the transfer that shows it, patches, and settings."""
  unembed, optimizer, decay = multimodal.unembed, tuning.optimizer, optax.add_decayed_weights
  schedule = tuning.schedule

  def no_image_part(recipe, steps):
    frozen = functools.partial(tree_map_first, "img")
    return optax.chain(optimizer(recipe, steps), optax.masked(optax.set_to_zero(), frozen))

  def later(recipe, steps):
    return lambda step: schedule(recipe, steps)(step + 1)

  capped = lambda *args: gemma.softcap(unembed(*args), 30.0)  # noqa: E731
  everywhere = lambda wd, mask: decay(wd)  # noqa: E731
  by_rate = lambda wd, mask: decay(wd * 1e-5, mask)  # noqa: E731
  return {
    "token mean": ("vqav2", [(masked, "mean", _token_mean)], {}),
    "cap": ("vqav2", [(multimodal, "unembed", capped)], {}),
    "no dropout": ("chartqa", [], {"llm_dropout": 0.0}),
    "smoothing over V": ("chartqa", [(supervised, "_cross_entropy", _smoothed_over_all)], {}),
    "tower frozen": ("vqav2", [], {"parts": recipes.NO_TOWER}),
    "decay on all": ("vqav2", [(optax, "add_decayed_weights", everywhere)], {}),
    "decay by rate": ("vqav2", [(optax, "add_decayed_weights", by_rate)], {}),
    "clip over all": (
      "gqa-448",
      [(tuning, "optimizer", no_image_part)],
      {"parts": recipes.EVERYTHING},
    ),
    "schedule": ("vqav2", [(tuning, "schedule", later)], {}),
    "order": ("vqav2", [(tuning, "optimizer", _clip_last)], {"wd": 0.0}),
  }


def tree_map_first(first: str, params: Any) -> Any:
  """Returns True for what lies below the key `first`."""
  return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key == first, params)


@pytest.mark.slow
@pytest.mark.parametrize("difference", _patches())
def test_each_difference_shows(difference, monkeypatch):
  name, patches, changed = _patches()[difference]
  for holder, attribute, value in patches:
    monkeypatch.setattr(holder, attribute, value)
  with pytest.raises(AssertionError) as caught:
    check(name, **changed)
  print(difference, str(caught.value).strip().replace("\n", " ")[:300])


@pytest.mark.parametrize(
  ("steps", "warmup", "wanted"), json.loads((GOLDENS / "recipes.json").read_text())["schedules"]
)
def test_the_schedule_is_that_of_big_vision(steps, warmup, wanted):
  at = tuning.schedule(recipes.Recipe(steps=steps, batch_size=1, lr=1.0, warmup=warmup), steps)
  np.testing.assert_allclose([at(i) for i in range(steps + 1)], wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
  ("name", "wanted"), json.loads((GOLDENS / "recipes.json").read_text())["recipes"].items()
)
def test_a_recipe_is_the_config_of_the_transfer(name, wanted):
  recipe, pp = recipes.get(name), wanted["pp"]
  for key in ("epochs", "batch_size", "lr", "wd", "clip", "label_smoothing", "llm_dropout"):
    assert vars(recipe)[key] == wanted[key], key
  for key in ("res", "antialias", "text_len"):
    assert vars(recipe.format)[key] == wanted[key], key
  assert wanted["optax"] in (["scale_by_adam", {}], ["scale_by_adam", {"b2": 0.999}])
  parts = [(regex, schedule and schedule["decay_type"]) for regex, schedule in wanted["parts"]]
  for path in ("img/embedding/kernel", "img/head/kernel", "llm/final_norm/scale"):
    trained = next(kind for regex, kind in parts if re.fullmatch(regex, path))
    assert (recipe.rate_of(path) is None) == (trained is None), path
  assert {s["warmup_percent"] for _, s in wanted["parts"] if s} == {recipe.warmup}
  of_answers = {"one": "", "cycle": 'choice_no_replacement(inkey="', "any": 'choice(inkey="'}
  assert of_answers[recipe.format.answers] in pp
  assert recipe.format.answers != "one" or 'choice(inkey="' not in pp
  plain = recipe.format.prompt.replace("{options}", "{ansstr}").replace("{question}", "{question")
  said = f'strfmt("{plain.partition("{question")[0]}'
  assert recipe.format.prompt == "{question}" or said in pp


def test_any_dtype_becomes_fp32_masters():
  bf16 = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params())
  tune = tuning.Tuning(CONFIG, dataclasses.replace(recipes.get("vqav2"), steps=5), steps=5)
  state = jax.eval_shape(tune._fresh, bf16)
  assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
  moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
  assert {x.dtype for x in moments} == {jnp.dtype("float32")}


def test_a_multiplier_scales_the_gradient_and_not_the_decay():
  recipe = recipes.Recipe(
    steps=10, batch_size=1, lr=0.1, wd=0.01, warmup=0.0, parts=(("a/.*", 0.5), (".*", 1.0))
  )
  values = {name: {"kernel": jnp.ones(2), "bias": jnp.ones(2)} for name in "ab"}
  tx = tuning.optimizer(recipe, 10)
  updates, _ = tx.update(values, tx.init(values), values)
  for name, rate in {"a": 0.5, "b": 1.0}.items():
    np.testing.assert_allclose(updates[name]["bias"], -0.1 * rate, rtol=1e-5)
    np.testing.assert_allclose(updates[name]["kernel"], -0.1 * rate - 0.01, rtol=1e-5)
