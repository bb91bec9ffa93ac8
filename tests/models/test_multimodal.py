# SPDX-License-Identifier: Apache-2.0
"""Masks, image slots, padding and the head."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from auditdm_jax.core import tree
from auditdm_jax.models import gemma, siglip
from auditdm_jax.models import multimodal as mm
from tests import drawn

IMAGE = 8
TEXT = gemma.GemmaConfig(
  vocab_size=19,
  width=12,
  depth=3,
  mlp_dim=20,
  num_heads=4,
  num_kv_heads=2,
  head_dim=6,
  window=4,
  layer_is_local=(True, False, True),
  embed_init_std=0.5,
)
VISION = siglip.SiglipConfig(
  width=10, depth=1, mlp_dim=12, num_heads=2, patch_size=4, image_size=16
)
PALIGEMMA = mm.VlmConfig(
  "paligemma", dataclasses.replace(TEXT, attn_softcap=5.0, final_softcap=3.0), VISION, IMAGE
)
GEMMA3 = mm.VlmConfig(
  "gemma3", dataclasses.replace(TEXT, qk_norm=True, rope_base=1e6), VISION, IMAGE, mm_tokens=4
)
BOTH = pytest.mark.parametrize("config", [PALIGEMMA, GEMMA3], ids=["paligemma", "gemma3"])


hidden = jax.jit(mm.hidden, static_argnums=0)
prefill = jax.jit(mm.prefill, static_argnums=0)
step = jax.jit(mm.step, static_argnums=0)


@functools.partial(jax.jit, static_argnums=(0, 2))
def features_of(config, params, n):
  pixels = jax.random.uniform(jax.random.key(0), (n, 16, 16, 3), minval=-1.0)
  return mm.encode_images(config, params, pixels)


def test_attention_masks_as_drawn():
  valid = np.ones((1, 5), bool)
  prefix = mm.make_attn_mask(valid, np.array([[0, 0, 0, 1, 1]]))[0].astype(int)
  assert prefix.tolist() == [[1, 1, 1, 0, 0]] * 3 + [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
  tokens = jnp.array([[3, IMAGE, IMAGE, IMAGE, 4]])
  ar = mm.default_ar(GEMMA3, tokens)
  assert ar.tolist() == [[1, 1, 0, 0, 1]]
  block = mm.make_attn_mask(valid, ar)[0].astype(int)
  assert block.tolist() == [[1, 0, 0, 0, 0]] + [[1, 1, 1, 1, 0]] * 3 + [[1, 1, 1, 1, 1]]
  assert mm.default_ar(PALIGEMMA, tokens).tolist() == [[0] * 5]
  padded = mm.make_attn_mask(np.array([[False, True, True]]), np.array([[1, 1, 1]]))[0]
  assert padded.astype(int).tolist() == [[0, 0, 0], [0, 1, 0], [0, 1, 1]]


def test_image_block_sees_itself_and_text_is_causal():
  """By effect: which positions of the output move when one input token or patch does."""
  params = drawn.params(GEMMA3)
  features = features_of(GEMMA3, params, 1)
  tokens = np.array([[2, IMAGE, IMAGE, IMAGE, IMAGE, 10, 11]])
  valid = np.ones_like(tokens, bool)
  # The last pooled cell of the image: earlier image slots must see it, the BOS must not.
  moved = features.at[:, 15].add(1.0)
  out = [hidden(GEMMA3, params, f, tokens, valid=valid) for f in (features, moved)]
  assert (jnp.abs(out[0] - out[1]).max(-1) > 1e-6)[0].tolist() == [False] + [True] * 6
  other = tokens.copy()
  other[0, 5] = 12
  out = [hidden(GEMMA3, params, features, t, valid=valid) for t in (tokens, other)]
  assert (jnp.abs(out[0] - out[1]).max(-1) > 1e-6)[0].tolist() == [False] * 5 + [True] * 2


def test_prefix_sees_all_of_itself_and_suffix_is_causal():
  params = drawn.params(PALIGEMMA)
  features = features_of(PALIGEMMA, params, 1)
  tokens = np.array([[IMAGE] * 16 + [2, 10, 11, 12]])
  valid, ar = np.ones_like(tokens, bool), np.array([[0] * 18 + [1, 1]])
  wide = dataclasses.replace(
    PALIGEMMA, text=dataclasses.replace(PALIGEMMA.text, layer_is_local=(), window=None)
  )

  def moves(at, *, ar):
    other = tokens.copy()
    other[0, at] = 13
    out = [hidden(wide, params, features, t, valid=valid, ar=ar) for t in (tokens, other)]
    return (jnp.abs(out[0] - out[1]).max(-1) > 1e-7)[0]

  assert moves(17, ar=ar).all()
  assert np.flatnonzero(moves(18, ar=ar)).tolist() == [18, 19]
  assert moves(19, ar=None).all()


@BOTH
def test_left_padding_equals_right_padding(config):
  params = drawn.params(config)
  features, m = features_of(config, params, 2), config.num_image_tokens
  rows = [[2] + [IMAGE] * m + [10, 11, 12, 13], [2] + [IMAGE] * m + [14]]
  length = max(map(len, rows)) + 2

  def padded(left):
    tokens, valid = np.zeros((2, length), np.int32), np.zeros((2, length), bool)
    for i, row in enumerate(rows):
      where = slice(length - len(row), None) if left else slice(0, len(row))
      tokens[i, where], valid[i, where] = row, True
    return hidden(config, params, features, tokens, valid=valid)[valid]

  np.testing.assert_allclose(padded(True), padded(False), atol=1e-5)
  alone = [
    hidden(config, params, features[i : i + 1], np.array([r]), valid=np.ones((1, len(r)), bool))[0]
    for i, r in enumerate(rows)
  ]
  np.testing.assert_allclose(padded(True), np.concatenate(alone), atol=1e-5)


@BOTH
def test_what_is_wanted_of_layers_in_a_list_is_a_part_of_the_whole(config):
  """So are its gradients; a token that is wanted twice counts twice."""
  params, m = drawn.params(config), config.num_image_tokens
  features = features_of(config, params, 2)
  tokens = np.array([[IMAGE] * m + [2, 10, 11, 12, 0], [IMAGE] * m + [2, 13, 14, 15, 16]])
  places = np.array([[m + 1, m + 3, 0], [m + 4, m + 4, m]])
  ar = np.array([[0] * (m + 2) + [1] * 3] * 2) if config.kind == "paligemma" else None

  def whole(params):
    x = mm.hidden(config, params, features, tokens, valid=tokens > 0, ar=ar)
    return jnp.take_along_axis(x, places[..., None], axis=1)

  def listed(params):
    params = mm.list_layers(params)
    return mm.hidden(config, params, features, tokens, valid=tokens > 0, ar=ar, places=places)

  def grads(f):
    return jax.jit(jax.grad(lambda params: jnp.sum(jnp.sin(f(params)))))(params)

  np.testing.assert_allclose(jax.jit(listed)(params), jax.jit(whole)(params), atol=1e-5)
  got, want = grads(listed), grads(whole)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, want)


@BOTH
def test_cached_decoding_is_the_full_forward_beyond_the_window(config):
  params, m, t, rest = drawn.params(config), config.num_image_tokens, 6, 9
  features = features_of(config, params, 2)
  text = jax.random.randint(jax.random.key(1), (2, t + rest), 9, 19)
  tokens = jnp.concatenate([jnp.full((2, m), IMAGE), text], axis=1)
  start = m + t  # Of what is decoded: more than twice the window, after a prompt longer than it.
  valid = jnp.ones_like(tokens, bool).at[1, m + 2 : start].set(False)
  ar = jnp.zeros_like(tokens).at[:, start:].set(1) if config.kind == "paligemma" else None
  want = hidden(config, params, features, tokens, valid=valid, ar=ar)[:, start:]

  _, kv = prefill(config, params, features, tokens[:, :start], valid=valid[:, :start])
  past = gemma.Past.start(kv, samples=1, room=rest)
  positions, write = mm.positions_of(valid), jax.jit(gemma.Past.write)
  for i in range(start, start + rest):
    written = valid & (jnp.arange(start + rest) < i)
    x, kv = step(
      config,
      params,
      tokens[:, i : i + 1],
      positions=positions[:, i : i + 1],
      past=past,
      past_positions=positions[:, None],
      past_valid=written[:, None],
    )
    past = write(past, kv, i - start)
    np.testing.assert_allclose(x[:, 0], want[:, i - start], atol=2e-5)


def test_windows_of_a_prefix_and_of_an_image_block():
  """A window of 4: a prefix of 18 sees all of itself, an image block what is near or ahead."""

  def sees(config, tokens, *, ar, at):
    """Which outputs of one local layer move with the input at `at`."""
    text = dataclasses.replace(config.text, layer_is_local=(True,), depth=1)
    config = dataclasses.replace(config, text=text)
    params = drawn.params(config)
    valid, m = np.ones_like(tokens, bool), config.num_image_tokens
    features = features_of(config, params, 1)
    slot = np.flatnonzero(tokens[0, : at + 1] == IMAGE).size - 1
    cell = np.arange(16) if m == 16 else np.arange(16).reshape(4, 4)[::2, ::2].ravel()
    moved = features.at[:, cell[slot]].add(1.0)
    out = [hidden(config, params, f, tokens, valid=valid, ar=ar) for f in (features, moved)]
    return np.flatnonzero((jnp.abs(out[0] - out[1]).max(-1) > 1e-6)[0]).tolist()

  tokens = np.array([[IMAGE] * 16 + [2, 10, 11, 12]])
  ar = np.array([[0] * 18 + [1, 1]])
  assert sees(PALIGEMMA, tokens, ar=ar, at=0) == list(range(18))
  assert sees(PALIGEMMA, tokens, ar=ar, at=15) == list(range(19))
  tokens = np.array([[2, IMAGE, IMAGE, IMAGE, IMAGE, 10, 11]])
  narrow = dataclasses.replace(GEMMA3, text=dataclasses.replace(GEMMA3.text, window=2))
  assert sees(narrow, tokens, ar=None, at=1) == [1, 2]
  assert sees(narrow, tokens, ar=None, at=4) == [1, 2, 3, 4, 5]


def test_rows_with_several_images():
  """Two images in a row are those of two rows with one, and a row without has no use for one."""
  params = drawn.params(GEMMA3)
  features = features_of(GEMMA3, params, 4)
  block = [IMAGE] * 4
  tokens = np.array([block + [2] + block + [3], [2, *block] + [3] * 5, [2] * 10])
  spare = jnp.full((2, 2, *features.shape[1:]), jnp.inf)
  spare = spare.at[0, 0].set(features[2])
  x = mm.embed(GEMMA3, params, jnp.stack([features[:2], *spare.at[:, 1].set(0.0)]), tokens)
  image = mm.project(GEMMA3, params, features)
  np.testing.assert_array_equal(x[0, :4], image[0])
  np.testing.assert_array_equal(x[0, 5:9], image[1])
  np.testing.assert_array_equal(x[1, 1:5], image[2])
  np.testing.assert_array_equal(x[2], mm.embed(GEMMA3, params, None, tokens[2:])[0])


def test_an_image_token_outside_of_the_vocabulary():
  far = dataclasses.replace(PALIGEMMA, image_token_id=500)
  params = drawn.params(PALIGEMMA)
  features = features_of(PALIGEMMA, params, 1)
  tokens = np.array([[IMAGE] * 16 + [2, 10]])
  moved = np.where(tokens == IMAGE, 500, tokens)
  np.testing.assert_array_equal(
    mm.embed(far, params, features, moved), mm.embed(PALIGEMMA, params, features, tokens)
  )
  assert np.isfinite(mm.embed(far, params, None, moved)).all()
  logits = mm.sampling_logits(far, params, jnp.ones((1, 12)), banned=(0, 500))
  assert (logits < -1e29).sum() == 1


def test_an_untied_head_is_read_by_unembed_alone():
  config = dataclasses.replace(
    PALIGEMMA, text=dataclasses.replace(PALIGEMMA.text, tied_head=False, final_softcap=0.0)
  )
  params = drawn.params(config)
  head = params["llm"]["embedder"]["output_embedding"]
  x = jax.random.normal(jax.random.key(1), (3, 12))
  np.testing.assert_allclose(mm.unembed(config, params, x), x @ head.T, atol=1e-5)


@BOTH
def test_image_slots_take_projected_features_unscaled(config):
  params, m = drawn.params(config), config.num_image_tokens
  params["llm"]["embedder"]["input_embedding"] = (
    params["llm"]["embedder"]["input_embedding"].at[IMAGE].set(jnp.nan)  # Never read.
  )
  features = features_of(config, params, 2)
  tokens = np.array([[2] + [IMAGE] * m + [10], [2, 10] + [IMAGE] * m])
  x = mm.embed(config, params, features, tokens)
  image = mm.project(config, params, features)
  np.testing.assert_array_equal(x[0, 1:-1], image[0])
  np.testing.assert_array_equal(x[1, 2:], image[1])
  want = params["llm"]["embedder"]["input_embedding"][10] * 12**0.5
  np.testing.assert_allclose(x[0, -1], want, rtol=1e-6)


def test_projectors():
  params = drawn.params(PALIGEMMA)
  f = features_of(PALIGEMMA, params, 2)
  head = params["img"]["head"]
  np.testing.assert_allclose(
    mm.project(PALIGEMMA, params, f), f @ head["kernel"] + head["bias"], atol=1e-5
  )
  params = drawn.params(GEMMA3)
  head = params["img"]["head"]
  grid = np.asarray(f).reshape(2, 4, 4, 10)
  cells = [grid[:, i : i + 2, j : j + 2].mean((1, 2)) for i in (0, 2) for j in (0, 2)]
  x = np.stack(cells, 1)
  x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
  x = x * (1 + head["soft_embedding_norm"]["scale"])
  np.testing.assert_allclose(
    mm.project(GEMMA3, params, f), x @ head["input_projection"]["w"], atol=1e-5
  )


@pytest.mark.parametrize("chunk", [None, 1, 4, 100])
def test_token_logprobs_equal_plain_log_softmax(chunk):
  params = drawn.params(PALIGEMMA)
  x = jax.random.normal(jax.random.key(1), (2, 5, 12))
  targets = jax.random.randint(jax.random.key(2), (2, 5), 9, 19)

  def plain(params, x):
    logits = x @ params["llm"]["embedder"]["input_embedding"].T
    logits = 3.0 * jnp.tanh(logits / 3.0) / 0.7
    logp = jax.nn.log_softmax(logits.at[..., jnp.array([0, IMAGE])].set(-jnp.inf))
    kept = jnp.where(jnp.isfinite(logp), logp, 0.0)
    picked = jnp.take_along_axis(logp, targets[..., None], axis=-1)[..., 0]
    return picked, -jnp.sum(jnp.exp(logp) * kept, axis=-1)

  def ours(params, x):
    return mm.token_logprobs(
      PALIGEMMA, params, x, targets, banned=(0, IMAGE), temperature=0.7, chunk=chunk
    )

  def grads(f):
    loss = lambda p, x: sum(jnp.sum(v * v) for v in f(p, x))  # noqa: E731
    return jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x)

  for got, want in zip(jax.jit(ours)(params, x), plain(params, x)):
    np.testing.assert_allclose(got, want, atol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), grads(ours), grads(plain))


def test_banned_target_is_finite():
  params = drawn.params(PALIGEMMA)
  x = jnp.ones((1, 1, 12))
  logp, entropy = mm.token_logprobs(PALIGEMMA, params, x, jnp.zeros((1, 1), int), banned=(0,))
  assert logp[0, 0] < -1e29 and np.isfinite(logp).all() and np.isfinite(entropy).all()


@BOTH
def test_config_round_trip_and_errors(config):
  assert mm.VlmConfig.from_dict(config.to_dict()) == config
  with pytest.raises(ValueError, match="model.text.depht.*did you mean 'depth'"):
    d = config.to_dict()
    mm.VlmConfig.from_dict(d | {"text": d["text"] | {"depht": 3}})
  with pytest.raises(ValueError, match="image_token_id -1 is not a token"):
    dataclasses.replace(config, image_token_id=-1)
  with pytest.raises(ValueError, match="pooled to mm_tokens 9"):
    dataclasses.replace(config, mm_tokens=9)


def test_full_size_tree_is_that_of_big_vision():
  """PaliGemma 2 3B at 448 px: names, shapes and the count of 3.033e9, without the weights."""
  text = gemma.GemmaConfig(257152, 2304, 26, 9216, 8, 4, 256)
  vision = siglip.SiglipConfig(1152, 27, 4304, 16, patch_size=14, image_size=448)
  config = mm.VlmConfig("paligemma", text, vision, image_token_id=257151)
  flat = tree.flatten(jax.eval_shape(lambda key: mm.init(config, key), jax.random.key(0)))
  assert round(sum(x.size for x in flat.values()) / 1e6) == 3033
  block = "img/Transformer/encoderblock/MultiHeadDotProductAttention_0/"
  for path, shape in {
    "img/embedding/kernel": (14, 14, 3, 1152),
    "img/pos_embedding": (1, 1024, 1152),
    block + "query/kernel": (27, 1152, 16, 72),
    block + "out/kernel": (27, 16, 72, 1152),
    "img/head/kernel": (1152, 2304),
    "llm/embedder/input_embedding": (257152, 2304),
    "llm/layers/attn/q_einsum/w": (26, 8, 2304, 256),
    "llm/layers/attn/kv_einsum/w": (26, 2, 4, 2304, 256),
    "llm/layers/attn/attn_vec_einsum/w": (26, 8, 256, 2304),
    "llm/layers/mlp/gating_einsum": (26, 2, 2304, 9216),
    "llm/layers/mlp/linear": (26, 9216, 2304),
    "llm/layers/post_ffw_norm/scale": (26, 2304),
    "llm/final_norm/scale": (2304,),
  }.items():
    assert flat[path].shape == shape, path
