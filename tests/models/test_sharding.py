# SPDX-License-Identifier: Apache-2.0
"""Eight devices, split in several ways, compute what one does (the learner: tests/rl)."""

import json

import numpy as np
import pytest

EIGHT = """
  import dataclasses, json
  import jax, numpy as np
  from auditdm_jax import vlm_batching as batching
  from auditdm_jax.core import mesh as mesh_lib, tree
  from auditdm_jax.models import multimodal, sharding
  from auditdm_jax.rl import sampler
  from auditdm_jax.vlm import Vlm
  from tests.rl import tiny

  base = tiny.auditor()
  text = dataclasses.replace(base.config.text, num_heads=4, num_kv_heads=2)
  config = dataclasses.replace(base.config, text=text, mm_tokens=1)
  shapes = jax.eval_shape(lambda key: multimodal.init(config, key), jax.random.key(0))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda s: rng.normal(0, 0.2, s.shape).astype(np.float32), shapes)
  images = [rng.integers(0, 256, (16, 16, 3), np.uint8) for _ in range(6)]
  asked = ["what color is the circle ?", "is it red ?", "what is the ?"] * 2

  WHICH = [[0], [0], [1], [0], [1], [0]]
  batching._prompts_per_row = lambda config, counts, *args, **how: 4 if max(counts) > 1 else 1

  def run(mesh):
    placed = params if mesh is None else jax.device_put(params, sharding.shardings(mesh, params))
    vlm = dataclasses.replace(base, config=config, params=placed, mesh=mesh)
    features = vlm.encode(images)
    pen = sampler.Sampler(vlm, seed=0, temperature=1.0, mesh=mesh)
    turns = pen.sample(
      placed, [pen.prompt("ask")] * 3, features=features[:3], image_ids=["x"] * 3, kind="question",
      width=8, max_new_tokens=6, walk=("train",), turn=0, uids=np.arange(3),
      samples=np.tile(np.arange(4), (3, 1)))
    # Of so small a model no questions share an image.
    small, multimodal.SMALL = multimodal.SMALL, 1
    large = dataclasses.replace(vlm)
    shared = large.reply_features(features, asked, which=WHICH, max_new_tokens=5)
    multimodal.SMALL = small
    ids = np.random.default_rng(1).integers(10, 14, (8, 9))
    flat = [turn for group in turns for turn in group]
    return {
      "features": features[:, 0].tolist(),
      "answers": vlm.answer_features(features, asked, max_new_tokens=5),
      "shared": [reply.text for reply in shared],
      "alone": vlm.answer_features(features[np.ravel(WHICH)], asked, max_new_tokens=5),
      "texts": [turn.text for turn in flat],
      "logprobs": [turn.logprobs.tolist() for turn in flat],
      "logits": np.asarray(vlm.logits(None, ids))[:, -1].tolist(),
    }

  print(json.dumps([run(None), *(run(mesh_lib.make_mesh(shape)) for shape in MESHES)]))
"""
MESHES = [
  {"fsdp": 4, "tensor": 2},
  {"data": 2, "fsdp": 2, "tensor": 2},
  {"data": 8},
  {"fsdp": 8},
  {"tensor": 8},
]


@pytest.mark.parametrize(
  "meshes", [MESHES[:1], pytest.param(MESHES[1:], marks=pytest.mark.slow)], ids=["one", "others"]
)
def test_one_device_equals_eight(run_python, meshes):
  """Features, greedy answers, samples with their log-probs, and logits."""
  source = EIGHT.replace("MESHES", repr(meshes))
  one, *others = json.loads(run_python(source, devices=8, timeout_s=600).splitlines()[-1])
  assert len(set(one["texts"])) > 3 and one["shared"] == one["alone"]
  for eight in others:
    for name in ("answers", "shared", "alone", "texts"):
      assert eight[name] == one[name], name
    for name in ("features", "logprobs", "logits"):
      np.testing.assert_allclose(eight[name], one[name], atol=2e-5, err_msg=name)


SENT = """
  import functools, json
  import jax, jax.numpy as jnp
  from auditdm_jax.core import mesh as mesh_lib
  from auditdm_jax.models import decode, gemma, multimodal, sharding
  from auditdm_jax.plan import traffic
  from tests.rl import tiny

  base = tiny.config()
  text = gemma.GemmaConfig(
    vocab_size=64, width=64, depth=2, mlp_dim=256, num_heads=4, num_kv_heads=2, head_dim=16)
  config = multimodal.VlmConfig(kind="gemma3", text=text, vision=base.vision, image_token_id=1)
  mesh = mesh_lib.make_mesh({"fsdp": 4, "tensor": 2})
  shapes = jax.eval_shape(lambda key: multimodal.init(config, key), jax.random.key(0))
  params = mesh_lib.placed(shapes, sharding.shardings(mesh, shapes))

  def sent(rows, new):
    def of(shape, dtype):
      where = mesh_lib.rows_sharding(mesh, rows)
      return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=where)

    def answer(params, tokens, keys):
      return decode.sample(
        config, decode.SampleConfig(max_new_tokens=new, temperature=0.0), params, None, tokens,
        valid=jnp.ones(tokens.shape, bool), group=1, row_keys=keys)

    with mesh_lib.use(mesh):
      keys = of((1,), jax.random.key(0).dtype)
      lowered = jax.jit(answer).lower(params, of((4,), jnp.int32), keys)
      found = traffic.read(lowered.compile().as_text())
    return found.wire

  weights = sum(x.size for x in jax.tree.leaves(shapes["llm"]["layers"])) * 4 / 2 * 3 / 4
  rows = (8, 256)
  print(json.dumps([weights, *((sent(n, 9) - sent(n, 5)) / 4 for n in rows)]))
"""


def test_a_step_of_few_rows_sends_no_weights(run_python):
  """Bytes over the links a token: less than the layers' weights; of many rows, they are sent."""
  said = run_python(SENT, devices=8, timeout_s=600).splitlines()[-1]
  weights, few, many = json.loads(said)
  assert few < weights / 2 and many > weights


DRAWN = """
  import jax, jax.numpy as jnp
  from auditdm_jax.core import mesh as mesh_lib
  from auditdm_jax.models import decode, multimodal, sharding
  from auditdm_jax.plan import traffic
  from tests.rl import tiny

  config, rows = tiny.config(), ROWS
  mesh = mesh_lib.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  shapes = jax.eval_shape(lambda key: multimodal.init(config, key), jax.random.key(0))
  params = mesh_lib.placed(shapes, sharding.shardings(mesh, shapes))

  def of(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=mesh_lib.rows_sharding(mesh, rows))

  def draw(params, x, keys):
    return decode.draw(config, decode.SampleConfig(1), params, x, keys, jnp.int32(0))

  with mesh_lib.use(mesh):
    x, keys = of((rows, 1, config.text.width), jnp.float32), of((rows, 1), jax.random.key(0).dtype)
    found = traffic.read(jax.jit(draw).lower(params, x, keys).compile().as_text())
  print(found.wire / (4 * rows * config.text.vocab_size))
"""


@pytest.mark.parametrize("rows", [4, 8])
def test_logits_go_to_the_device_that_draws(run_python, rows):
  """Bytes over the links, in logits of all rows: also if there are fewer rows than devices."""
  said = run_python(DRAWN.replace("ROWS", str(rows)), devices=8, timeout_s=600)
  assert float(said.splitlines()[-1]) < 0.5
