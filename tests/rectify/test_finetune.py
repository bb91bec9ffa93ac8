# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning learns, forgets less with replay, leaves frozen parts alone, and resumes exactly."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from auditdm_jax.core import config as config_lib
from auditdm_jax.core import tree
from auditdm_jax.models import gemma, multimodal, preprocess, siglip
from auditdm_jax.rectify import curate, features, finetune, kept, recipes, rows, supervised
from auditdm_jax.rectify.examples import ListedExamples
from auditdm_jax.rectify.tune import TuneConfig
from auditdm_jax.text import tokenizer as tokenizer_lib
from tests import drawn

_WORDS = "color shape of a b c d red blue".split()
_RECIPE = recipes.Recipe(
  steps=8, batch_size=8, lr=3e-3, replay=0.5, warmup=0.1, parts=recipes.NO_TOWER
)


@pytest.fixture(scope="module")
def model():
  return make_model()


def make_model():
  """(config, params, layout) of a tiny PaliGemma-like model."""
  words = tokenizer_lib.Tokenizer.word_level(_WORDS)
  text = gemma.GemmaConfig(
    vocab_size=words.vocab_size,
    width=16,
    depth=1,
    mlp_dim=32,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    query_scale=8**-0.5,
  )
  vision = siglip.SiglipConfig(
    width=8, depth=1, mlp_dim=16, num_heads=2, patch_size=16, image_size=32
  )
  config = multimodal.VlmConfig(
    kind="paligemma", text=text, vision=vision, image_token_id=words.id("<image_soft_token>")
  )
  params = drawn.params(config)
  layout = rows.RowLayout(words, "{image}<bos>{text}\n", 4, words.id("<eos>"), length=12, suffix=2)
  return config, params, layout


def picture(name):
  return np.random.default_rng(sum(name.encode())).integers(0, 255, (32, 32, 3), np.uint8)


def examples(names, label):
  """Questions about three pictures."""
  listed = [
    curate.TrainingExample(image_id=f"{label}{i % 3}", question=f"color of {x}", label=label)
    for i, x in enumerate(names)
  ]
  return ListedExamples(listed, load=picture, put=str)


def eye_of(config, params):
  def encode(pictures):
    pixels = preprocess.preprocess(pictures, size=config.tower.image_size)
    return np.asarray(multimodal.encode_images(config, params, pixels))

  return features.Eye(preprocess.Pixels(), encode, "tiny")


_NEW, _OLD = examples("abcd", "red"), examples("ab", "blue")
_TUNE = TuneConfig(validation=0.0)


def _run(model, recipe=_RECIPE, *, new=_NEW, replay=_OLD, params=None, **options):
  config, start, layout = model
  eye = options.pop("eye", None) or eye_of(config, start)
  return finetune.finetune(
    *(config, params or start, recipe),
    **dict(layout=layout, new=new, replay=replay, eye=eye, seed=0, tune=_TUNE) | options,
  )


def test_micro_batches_are_the_batch(model):
  # Suffixes of one and two tokens: a mean of the means of micro-batches would be another loss.
  config, params, layout = model
  n = 8
  batch = supervised.Batch(
    images=np.random.default_rng(0).normal(size=(3, 4, 8)).astype(np.float32),
    image=np.arange(n, dtype=np.int32) % 3,
    **layout.rows([f"color of {x}" for x in "abcdabcd"], ["red"] * 5 + [""] * 3),
  )
  whole, halves = (
    jax.jit(supervised.loss_and_grads, static_argnames=("config", "method"))(
      config, params, batch, method=supervised.Method(label_smoothing=0.1, micro_rows=rows)
    )
    for rows in (0, 2)
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), whole, halves)


def test_features_that_do_not_fit_are_computed_in_each_step(model, tmp_path):
  encoded = []
  own = eye_of(*model[:2])

  def encode(pictures):
    encoded.append(len(pictures))
    return own.encode(pictures)

  eye = dataclasses.replace(own, encode=encode)
  kept = _run(model, eye=eye, workdir=tmp_path)
  assert encoded == [3, 2]  # Each picture once: three of the new ones, two of the old.
  assert not (tmp_path / "features").exists()
  again = _run(model, eye=eye, tune=dataclasses.replace(_TUNE, feature_bytes=5 * 64 - 1))
  assert encoded == [3, 2]
  want, got = tree.flatten(kept.params), tree.flatten(again.params)
  for path in want:
    np.testing.assert_allclose(got[path], want[path], atol=3e-3, err_msg=path)


def test_a_tower_that_trains_sees_pixels(model):
  recipe = dataclasses.replace(_RECIPE, parts=recipes.EVERYTHING)
  result = _run(model, recipe, eye=features.Eye(preprocess.Pixels(), None, "unused"))
  before, after = tree.flatten(model[1]), tree.flatten(result.params)
  moved = [path for path in before if not np.array_equal(before[path], after[path])]
  assert "img/embedding/kernel" in moved and "img/pos_embedding" in moved


def test_the_best_parameters_are_kept_and_a_worse_loss_ends_the_training(
  model, tmp_path, monkeypatch
):
  recipe = dataclasses.replace(_RECIPE, steps=30, lr=0.5, warmup=0.0)  # It diverges.
  tune = TuneConfig(validation=0.4, eval_every=2, patience=3)
  saved, save = {}, kept.Kept.save

  def noted(self, state):
    saved[int(state.step)] = jax.device_get(state.params)
    save(self, state)

  monkeypatch.setattr(kept.Kept, "save", noted)
  in_memory, on_disk = (_run(model, recipe, tune=tune, workdir=w) for w in (None, tmp_path))
  assert in_memory.steps == in_memory.best + 6 < 30
  _equal(in_memory.params, saved[in_memory.best])
  kernel = in_memory.params["img"]["head"]["kernel"]
  assert not np.array_equal(kernel, saved[in_memory.steps]["img"]["head"]["kernel"])
  _equal(in_memory.params, on_disk.params)
  rows = [json.loads(x) for x in (tmp_path / "metrics" / "rectify.jsonl").read_text().splitlines()]
  losses = {row["step"]: row["validation"] for row in rows}
  assert min(losses, key=losses.get) == on_disk.best and min(losses.values()) == on_disk.validation
  assert all(0 <= row["machine/waiting"] <= 1 for row in rows)
  assert rows[-1]["machine/tokens_per_s"] > 0
  again = _run(model, recipe, tune=tune, workdir=tmp_path)
  assert (again.steps, again.best, again.loss) == (on_disk.steps, on_disk.best, None)
  _equal(again.params, on_disk.params)


def test_rows_that_do_not_divide_are_refused():
  with pytest.raises(ValueError, match="micro_rows"):
    recipes.Recipe(steps=1, batch_size=6, lr=1.0, micro_rows=4)


def _equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_loss_falls_and_only_the_tower_stays(model):
  result = _run(model, dataclasses.replace(_RECIPE, steps=60, lr=1e-2))
  assert result.loss < 1.5 < np.log(model[0].text.vocab_size) and (
    result.steps,
    result.skipped,
  ) == (60, 0)
  before, after = tree.flatten(model[1]), tree.flatten(result.params)
  for path in before:
    tower = path.startswith("img/") and not path.startswith("img/head")
    assert np.array_equal(before[path], after[path]) == tower or path.endswith("bias"), path


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(model, tmp_path, monkeypatch):
  tune = TuneConfig(validation=0.5, eval_every=3, save_every=2)
  straight = _run(model, tune=tune)
  make = supervised.make_step

  def failing(*args, **options):
    step, calls = make(*args, **options), []

    def wrapped(state, batch):
      calls.append(1)
      if len(calls) > 5:
        raise KeyboardInterrupt
      return step(state, batch)

    return wrapped

  monkeypatch.setattr(supervised, "make_step", failing)
  with pytest.raises(KeyboardInterrupt):
    _run(model, workdir=tmp_path, tune=tune)
  monkeypatch.setattr(supervised, "make_step", make)
  resumed = _run(model, workdir=tmp_path, tune=tune)
  _equal(resumed.params, straight.params)
  assert resumed == dataclasses.replace(straight, params=resumed.params)
  again = _run(model, workdir=tmp_path, tune=tune)
  assert again.steps == 8 and again.loss is None
  _equal(again.params, straight.params)
  other = dataclasses.replace(_RECIPE, lr=1e-4)
  with pytest.raises(config_lib.UserError, match="another recipe"):
    _run(model, other, workdir=tmp_path, tune=tune)


def test_gradients_that_stay_non_finite_are_an_error(model):
  blind = features.Eye(
    preprocess.Pixels(), lambda pictures: np.full((len(pictures), 4, 8), np.nan), "blind"
  )
  recipe, tune = dataclasses.replace(_RECIPE, steps=20), dataclasses.replace(_TUNE, log_every=15)
  with pytest.raises(FloatingPointError, match="15 of 15 gradients were not finite"):
    _run(model, recipe, eye=blind, tune=tune)


@pytest.mark.parametrize(
  ("recipe", "replay", "message"),
  [
    (_RECIPE, None, "none was given"),
    (dataclasses.replace(_RECIPE, replay=0.0), _OLD, "some was given"),
  ],
)
def test_recipe_and_data_must_fit(model, recipe, replay, message):
  with pytest.raises(config_lib.UserError, match=message):
    _run(model, recipe, replay=replay)


EIGHT = """
  import dataclasses, jax, numpy as np
  from auditdm_jax.core import mesh as mesh_lib, tree
  from tests.rectify import test_finetune as t

  model = t.make_model()
  recipe = dataclasses.replace(t._RECIPE, remat=True)
  one = t._run(model, t._RECIPE)
  for shape in ({"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}):
    eight = t._run(model, recipe, mesh=mesh_lib.make_mesh(shape))
    np.testing.assert_allclose(eight.loss, one.loss, rtol=1e-4)
    want, got = tree.flatten(one.params), tree.flatten(eight.params)
    for path in want:
      np.testing.assert_allclose(got[path], want[path], atol=3e-4, err_msg=path)
"""


def test_eight_devices_equal_one(run_python):
  """Masters, moments and rows split over all, layers computed again."""
  run_python(EIGHT, devices=8, timeout_s=600)
