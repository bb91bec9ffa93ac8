# SPDX-License-Identifier: Apache-2.0
"""The published models at full size, by shapes alone."""

import functools
import math
import re

import jax
from jax.sharding import PartitionSpec as P
import pytest

from auditdm_jax.core import tree
from auditdm_jax.core.config import UserError
from auditdm_jax.models import multimodal, sharding, variants

# Billions of parameters, as published; the tower and the head that is tied counted once.
PUBLISHED = {
  "gemma3_270m": 0.27,
  "gemma3_1b": 1.00,
  "gemma3_4b": 4.30,
  "gemma3_12b": 12.19,
  "gemma3_27b": 27.43,
  "paligemma_3b": 2.92,
  "paligemma2_3b": 3.03,
  "paligemma2_10b": 9.66,
  "paligemma2_28b": 27.65,
}
# Resolution changes the position embedding alone.
SMALL = [n for n in variants.VARIANTS if not n.endswith(("448", "896"))]


@functools.cache
def shapes(name):
  config = variants.VARIANTS[name]
  return jax.eval_shape(lambda key: multimodal.init(config, key), jax.random.key(0))


def num_params(params):
  return sum(math.prod(x.shape) for x in jax.tree.leaves(params))


@pytest.mark.parametrize("name", SMALL)
def test_parameter_counts_are_the_published_ones(name):
  published = PUBLISHED[re.sub(r"_224$", "", name)]
  assert abs(num_params(shapes(name)) / 1e9 - published) < 0.005


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_is_matched_by_one_rule(name):
  for path in tree.flatten(shapes(name)):
    matching = [regex for regex, _ in sharding.SHARDING_RULES if re.search(regex, path)]
    assert len(matching) == 1, (path, matching)


def mesh(**sizes):
  """A mesh of devices that do not exist: shapes are all that shardings are made of."""
  return jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))


def test_shardings_of_a_full_size_model():
  flat = tree.flatten(shapes("gemma3_27b"))
  got = tree.flatten(sharding.shardings(mesh(fsdp=8, tensor=4), shapes("gemma3_27b")))
  assert {path: s.spec for path, s in got.items() if path.startswith("llm/") and s.spec} == {
    "llm/embedder/input_embedding": P(("tensor", "fsdp"), None),
    "llm/layers/attn/q_einsum/w": P(None, "tensor", "fsdp"),
    "llm/layers/attn/kv_einsum/w": P(None, None, "tensor", "fsdp"),
    "llm/layers/attn/attn_vec_einsum/w": P(None, "tensor", None, "fsdp"),
    "llm/layers/mlp/gating_einsum": P(None, None, "fsdp", "tensor"),
    "llm/layers/mlp/linear": P(None, "tensor", "fsdp"),
  }
  shards = [s.shard_shape(x.shape) for s, x in zip(got.values(), flat.values())]
  assert sum(map(math.prod, shards)) < 1.01 * num_params(flat) / 32


def test_what_does_not_divide_stays_whole():
  one_kv_head = sharding.shardings(mesh(fsdp=2, tensor=4), shapes("gemma3_1b"))
  spec = one_kv_head["llm"]["layers"]["attn"]["kv_einsum"]["w"].spec
  assert spec == P(None, None, None, "fsdp")
  data_only = sharding.shardings(mesh(fsdp=2, data=4), shapes("paligemma_3b_224"))
  assert data_only["llm"]["embedder"]["input_embedding"].spec == P("fsdp", None)


def test_a_parameter_without_a_rule_is_named():
  with pytest.raises(UserError, match=r"llm/adapter/w \(4, 4\): none of the sharding rules"):
    sharding.shardings(
      mesh(fsdp=2), {"llm": {"adapter": {"w": jax.ShapeDtypeStruct((4, 4), "float32")}}}
    )
