# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning learns, forgets less with replay, leaves frozen parts alone, and resumes exactly."""

import dataclasses

import jax
import numpy as np
import pytest

from auditdm_jax.core import config as config_lib
from auditdm_jax.core import tree
from auditdm_jax.models import gemma, multimodal, siglip
from auditdm_jax.rectify import finetune, recipes, rows, supervised
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


def _data(names, label, *, seed=0):
  features = np.random.default_rng(seed).normal(size=(3, 4, 8)).astype(np.float32)
  return finetune.Data(
    features=features,
    image=np.arange(len(names), dtype=np.int32) % 3,
    questions=[f"color of {x}" for x in names],
    labels=[label] * len(names),
  )


_NEW, _OLD = _data("abcd", "red"), _data("ab", "blue", seed=1)


def _run(model, recipe=_RECIPE, *, replay=_OLD, params=None, **options):
  config, start, layout = model
  return finetune.finetune(
    config, params or start, recipe, layout=layout, new=_NEW, replay=replay, seed=0, **options
  )


def test_micro_batches_are_the_batch(model):
  # Suffixes of one and two tokens: a mean of the means of micro-batches would be another loss.
  config, params, layout = model
  n = 8
  batch = supervised.Batch(
    images=_NEW.features,
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
  straight = _run(model)
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
    _run(model, workdir=tmp_path, save_every=2)
  monkeypatch.setattr(supervised, "make_step", make)
  resumed = _run(model, workdir=tmp_path, save_every=2)
  _equal(resumed.params, straight.params)
  again = _run(model, workdir=tmp_path)
  assert again.steps == 8 and again.loss is None
  _equal(again.params, straight.params)
  other = dataclasses.replace(_RECIPE, lr=1e-4)
  with pytest.raises(config_lib.UserError, match="another recipe"):
    _run(model, other, workdir=tmp_path)


def test_batches_are_half_replay_and_a_function_of_the_step(model):
  batches = finetune._Batches(model[2], _RECIPE, _NEW, _OLD, 0)
  first, again = batches(5), finetune._Batches(model[2], _RECIPE, _NEW, _OLD, 0)(5)
  np.testing.assert_array_equal(first.tokens, again.tokens)
  np.testing.assert_array_equal(first.images, again.images)
  assert first.images.shape == (8, 4, 8) and first.tokens.shape == (8, 12)
  assert len(np.unique(first.targets[:4, 0])) == 1
  assert first.targets[0, 0] != first.targets[4, 0]


def test_passes_see_every_example_once():
  seen = np.concatenate([finetune.indices(0, "new", s, count=3, size=7) for s in range(7)])
  for i in range(3):
    assert sorted(seen[7 * i : 7 * i + 7]) == list(range(7))
  assert list(seen[:7]) != list(seen[7:14])
  assert list(finetune.indices(1, "new", 0, count=7, size=7)) != list(seen[:7])
  assert list(finetune.indices(0, "replay", 0, count=7, size=7)) != list(seen[:7])


def test_gradients_that_stay_non_finite_are_an_error(model):
  bad = dataclasses.replace(_NEW, features=np.full_like(_NEW.features, np.nan))
  config, params, layout = model
  recipe = dataclasses.replace(_RECIPE, steps=20)
  with pytest.raises(FloatingPointError, match="15 of 15 gradients were not finite"):
    finetune.finetune(
      config, params, recipe, layout=layout, new=bad, replay=_OLD, seed=0, log_every=15
    )


@pytest.mark.parametrize(
  ("recipe", "replay", "message"),
  [
    (_RECIPE, None, "none was given"),
    (dataclasses.replace(_RECIPE, replay=0.0), _OLD, "some was given"),
    (dataclasses.replace(_RECIPE, parts=recipes.EVERYTHING), _OLD, "trains the vision tower"),
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
