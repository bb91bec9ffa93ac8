# SPDX-License-Identifier: Apache-2.0
"""Sampling with a KV cache: prefill once per prompt, then one `while_loop` over G samples of each.

    prompts P ─ prefill ─> cache [L,P,T,K,H] ─ repeat ─> [L,P·G,T+C-1,K,H] ─┐
                           last hidden [P,D] ─ repeat ─> draw token 0        ├─ while: step, draw
                                                                             ┘  until all stopped

Every draw is a function of (row key, t) alone, so a sample does not depend on the batch it is in.

Axes: P prompts, G samples per prompt, R = P·G rows, T prompt, C completion, L layers, K kv-heads,
H head dim, D width, V vocab.
"""

import dataclasses
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp

from auditdm_jax.models import multimodal
from auditdm_jax.models.multimodal import Params, VlmConfig


@dataclasses.dataclass(frozen=True)
class SampleConfig:
  """Settings of the sampler that a compiled program is made for.

  Attributes:
    max_new_tokens: C, tokens per sample, terminator included.
    temperature: 0 is greedy; the log-probs are then those of temperature 1.
    stop_ids: any of these ends a sample.
    banned_ids: never drawn; the learner must ban the same ids.
  """

  max_new_tokens: int
  temperature: float = 1.0
  stop_ids: tuple[int, ...] = ()
  banned_ids: tuple[int, ...] = ()

  def __post_init__(self):
    if self.max_new_tokens < 1:
      raise ValueError(f"max_new_tokens {self.max_new_tokens} is less than 1")
    if self.temperature < 0:
      raise ValueError(f"temperature {self.temperature} is negative")
    if both := set(self.stop_ids) & set(self.banned_ids):
      raise ValueError(f"ids {sorted(both)} are both stop_ids and banned_ids")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Samples:
  """What was drawn. Lengths are the sampler's own: a pad id in the text would be a token."""

  tokens: Array  # i32[P,G,C], 0 from `length` on
  length: Array  # i32[P,G], terminator included
  truncated: Array  # bool[P,G], no terminator within C tokens
  logprobs: Array  # f32[P,G,C], of the sampling distribution; 0 from `length` on


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
  t: Array  # i32[], tokens drawn per row
  cache: tuple[Array, Array]  # keys and values [L,R,T+C-1,K,H]
  tokens: Array  # i32[R,C]
  logprobs: Array  # f32[R,C]
  length: Array  # i32[R]
  done: Array  # bool[R]


def sample(
  cfg: VlmConfig,
  sc: SampleConfig,
  params: Params,
  features: Array | None,
  tokens: Array,
  *,
  valid: Array,
  group: int,
  row_keys: Array,
) -> Samples:
  """Draws `group` samples for each prompt.

  Args:
    cfg: the model.
    sc: the sampler's settings.
    params: the parameters.
    features: [P,Dp,Dv] of `multimodal.encode_images`, or None.
    tokens: i32[P,T] prompts, padded on either side.
    valid: bool[P,T], False at padding.
    group: G.
    row_keys: key[P,G], one typed key per sample.

  Returns:
    The samples.

  Raises:
    ValueError: shapes that do not fit together.
  """
  p, prompt_len = tokens.shape
  if row_keys.shape != (p, group):
    raise ValueError(f"row_keys {row_keys.shape}: expected {(p, group)}, prompts by group")
  c = sc.max_new_tokens

  x, cache = multimodal.prefill(cfg, params, features, tokens, valid=valid)
  last = prompt_len - 1 - jnp.argmax(valid[:, ::-1], axis=1)
  x = jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]

  x = jnp.repeat(x, group, axis=0)
  cache = jax.tree.map(lambda kv: _extend(kv, group, c - 1), cache)
  count = jnp.repeat(jnp.sum(valid, axis=1), group)  # [R], also the position of token 0
  prompt_positions = jnp.repeat(multimodal.positions_of(valid), group, axis=0)
  past_positions = jnp.concatenate([prompt_positions, count[:, None] + jnp.arange(c - 1)], axis=1)
  prompt_valid = jnp.repeat(valid, group, axis=0)
  keys = row_keys.reshape(-1)

  def advance(s: _State) -> _State:
    """Runs token t-1 of each row through the model and draws token t."""
    written = jnp.broadcast_to(jnp.arange(c - 1) < s.t - 1, (p * group, c - 1))
    x, kv = multimodal.step(
      cfg,
      params,
      jax.lax.dynamic_index_in_dim(s.tokens, s.t - 1, axis=1, keepdims=False),
      positions=count + s.t - 1,
      past=s.cache,
      past_positions=past_positions,
      past_valid=jnp.concatenate([prompt_valid, written], axis=1),
    )
    at = prompt_len + s.t - 1
    cache = jax.tree.map(
      lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, at, axis=2), s.cache, kv
    )
    return _record(sc, dataclasses.replace(s, cache=cache), draw(cfg, sc, params, x, keys, s.t))

  rows = p * group
  state = _State(
    t=jnp.int32(0),
    cache=cache,
    tokens=jnp.zeros((rows, c), jnp.int32),
    logprobs=jnp.zeros((rows, c), jnp.float32),
    length=jnp.zeros(rows, jnp.int32),
    done=jnp.zeros(rows, bool),
  )
  state = _record(sc, state, draw(cfg, sc, params, x, keys, state.t))
  state = jax.lax.while_loop(lambda s: (s.t < c) & ~jnp.all(s.done), advance, state)
  return Samples(
    tokens=state.tokens.reshape(p, group, c),
    length=state.length.reshape(p, group),
    truncated=~state.done.reshape(p, group),
    logprobs=state.logprobs.reshape(p, group, c),
  )


def draw(
  cfg: VlmConfig, sc: SampleConfig, params: Params, x: Array, keys: Array, t: Array
) -> tuple[Array, Array]:
  """Returns the t-th token i32[R] and its log-prob f32[R] for hidden states [R,D].

  Gumbel-max: argmax(logits + Gumbel noise) is a sample of softmax(logits).
  """
  temperature = sc.temperature or 1.0
  logits = multimodal.sampling_logits(cfg, params, x, banned=sc.banned_ids, temperature=temperature)
  noisy = logits
  if sc.temperature:
    noise = jax.vmap(lambda k: jax.random.gumbel(jax.random.fold_in(k, t), logits.shape[-1:]))
    noisy = logits + noise(keys)
  tokens = jnp.argmax(noisy, axis=-1).astype(jnp.int32)
  return tokens, multimodal.logprob_and_entropy(logits, tokens)[0]


def _extend(kv: Array, group: int, room: int) -> Array:
  """Returns the cache [L,P·G,S+room,K,H] of G samples per prompt from the prompts' [L,P,S,K,H]."""
  kv = jnp.repeat(kv, group, axis=1)
  return jnp.pad(kv, ((0, 0), (0, 0), (0, room), (0, 0), (0, 0)))


def _record(sc: SampleConfig, s: _State, drawn: tuple[Array, Array]) -> _State:
  """Writes what was drawn into column t of the rows that have not stopped."""
  token, logp = (jnp.where(s.done, jnp.zeros_like(d), d) for d in drawn)
  stops: Any = jnp.zeros_like(s.done)
  for stop in sc.stop_ids:
    stops = stops | (token == stop)
  return dataclasses.replace(
    s,
    t=s.t + 1,
    tokens=jax.lax.dynamic_update_slice_in_dim(s.tokens, token[:, None], s.t, axis=1),
    logprobs=jax.lax.dynamic_update_slice_in_dim(s.logprobs, logp[:, None], s.t, axis=1),
    length=s.length + ~s.done,
    # A stopped row holds zeros, and 0 may itself be a terminator: only live rows can stop.
    done=s.done | stops,
  )
