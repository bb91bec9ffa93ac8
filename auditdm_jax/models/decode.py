# SPDX-License-Identifier: Apache-2.0
"""Sampling with a KV cache: prefill once per prompt, then one `while_loop` over G samples of each.

    prompts B ─ prefill ─> prefix [L,B,K,S,H], read by all samples ──┐
                           suffixes [L,B,G,K,C-1,H], one per sample ─┼─ while: step, draw, write
                           last hidden [B,1,D] ─ draw token 0 ───────┘  until all have stopped

Those are the axes of values; of keys the last two are swapped, see `gemma.Past`.

Memory and the bytes read by a step grow with B·S + B·G·C and not with B·G·S.

The samples may also be answers to G prompts that begin alike, where what begins them does not see
what follows it: Gemma 3's questions about one image. The prefill takes that head and the G tails
after it in one row, in which no tail sees another, and each tail begins a suffix.

Every draw is a function of (row key, t) alone, so a sample does not depend on the batch it is in.

Axes: B prompts of S tokens, G samples of each.
"""

import dataclasses
import math
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp

from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.core.config import UserError
from auditdm_jax.models import gemma, multimodal
from auditdm_jax.models.multimodal import Params, VlmConfig

_BLOCK = 256  # Tokens that `draw_token` looks at together: about the root of a vocabulary.
# Below it fp32 logits are not known well enough to be told apart, and divided by it they overflow.
_GREEDY_BELOW = 1e-4  # Ours.


@dataclasses.dataclass(frozen=True)
class SampleConfig:
  """Settings of the sampler that a compiled program is made for.

  Attributes:
    max_new_tokens: C, tokens per sample, terminator included.
    temperature: below 1e-4 is greedy; the log-probs are then those of temperature 1.
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
    if not 0 <= self.temperature < math.inf:  # NaN is neither.
      raise UserError(f"temperature {self.temperature} is negative or not finite")
    if both := set(self.stop_ids) & set(self.banned_ids):
      raise ValueError(f"ids {sorted(both)} are both stop_ids and banned_ids")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Samples:
  """What was drawn. Lengths are the sampler's own: a pad id in the text would be a token."""

  tokens: Array  # i32[B,G,C], 0 from `length` on
  length: Array  # i32[B,G], terminator included
  truncated: Array  # bool[B,G], no terminator within C tokens
  logprobs: Array  # f32[B,G,C], of the sampling distribution; 0 from `length` on


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tails:
  """The ends of G prompts that begin alike, each with at least one token, padded on its right."""

  tokens: Array  # i32[B,G,E]
  valid: Array  # bool[B,G,E]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Prefilled:
  """Prompts after the prefill, by sample, or with 1 for G where all samples are of one prompt."""

  last: Array  # [B,1|G,D], hidden states of the last tokens
  kv: Any  # of `multimodal.prefill`
  count: Array  # i32[B,1|G], tokens, also the position of token 0
  positions: Array  # i32[B,1|G,S+E]
  valid: Array  # bool[B,1|G,S+E]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
  t: Array  # i32[], tokens drawn per sample
  past: Any  # of `multimodal.start_past`, up to token t-2
  tokens: Array  # i32[B,G,C]
  logprobs: Array  # f32[B,G,C]
  length: Array  # i32[B,G]
  done: Array  # bool[B,G]


def sample(
  config: VlmConfig,
  sc: SampleConfig,
  params: Params,
  features: Array | None,
  tokens: Array,
  *,
  valid: Array,
  group: int,
  row_keys: Array,
  tails: Tails | None = None,
  limits: Array | None = None,
  temperatures: Array | None = None,
) -> Samples:
  """Draws `group` samples for each prompt.

  Args:
    config: the model.
    sc: the sampler's settings.
    params: the parameters.
    features: [B,P,Dv] of `multimodal.encode_images`, or None.
    tokens: i32[B,S] prompts, padded on either side.
    valid: bool[B,S], False at padding.
    group: G.
    row_keys: key[B,G], one typed key per sample.
    tails: what follows on `tokens` in the prompt of each sample, if they are of G prompts; what
      `tokens` are must not see it, as in PaliGemma it would.
    limits: i32[B], at most C: tokens per sample of each row; None = C.
    temperatures: f32[B], each row's own, below 1e-4 greedy; None = that of `sc`. A program
      with them serves all temperatures.

  Returns:
    The samples.

  Raises:
    ValueError: shapes that do not fit together.
  """
  if multimodal.splits_layers(params):
    params = multimodal.split_layers(params)
  elif multimodal.lists_layers(config, params):
    params = multimodal.list_layers(params)
  b, c = tokens.shape[0], sc.max_new_tokens
  if row_keys.shape != (b, group):
    raise ValueError(f"row_keys {row_keys.shape}: expected {(b, group)}, prompts by group")

  if tails is None:
    tail, start = 0, _prefill(config, params, features, tokens, valid)
  else:
    tail = tails.tokens.shape[2]
    start = _prefill_tails(config, params, features, tokens, valid, tails)
  kv = start.kv
  if multimodal.lists_layers_of_steps(params):
    params, kv = multimodal.list_layers(params), multimodal.list_kv(kv)
  suffix = jnp.arange(max(c - 1, 1))  # The last token is not written, and no axis is empty.
  past_positions = jnp.concatenate([start.positions, start.count[..., None] + suffix], axis=2)

  def over(s: _State) -> Array:
    """Returns bool[P,G]: whether a sample gets no more tokens."""
    return s.done if limits is None else s.done | (s.t >= limits[:, None])

  def advance(s: _State) -> _State:
    """Runs token t-1 of each sample through the model and draws token t."""
    written = jnp.broadcast_to(suffix < s.t - 1, (*start.count.shape, suffix.size))
    x, kv = multimodal.step(
      config,
      params,
      jax.lax.dynamic_index_in_dim(s.tokens, s.t - 1, axis=2, keepdims=False),
      positions=start.count + s.t - 1,
      past=s.past,
      past_positions=past_positions,
      past_valid=jnp.concatenate([start.valid, written], axis=2),
    )
    drawn = draw(config, sc, params, x, row_keys, s.t, temperatures=temperatures)
    # No token is negative, but so the place depends on one: XLA sees that the past has been read
    # before it is written to, and writes in place.
    at = tail + s.t - 1 + jnp.minimum(drawn[0][0, 0], 0)
    past = multimodal.write_past(s.past, kv, at)
    return _record(sc, dataclasses.replace(s, past=past), drawn, over(s))

  rows = (b, group)
  state = _State(
    t=jnp.int32(0),
    past=multimodal.start_past(kv, samples=group, room=suffix.size, tail=tail),
    tokens=jnp.zeros((*rows, c), jnp.int32),
    logprobs=jnp.zeros((*rows, c), jnp.float32),
    length=jnp.zeros(rows, jnp.int32),
    done=jnp.zeros(rows, bool),
  )
  first = jnp.broadcast_to(start.last, (*rows, start.last.shape[-1]))
  drawn = draw(config, sc, params, first, row_keys, state.t, temperatures=temperatures)
  state = _record(sc, state, drawn, over(state))
  state = jax.lax.while_loop(lambda s: (s.t < c) & ~jnp.all(over(s)), advance, state)
  return Samples(
    tokens=state.tokens,
    length=state.length,
    truncated=~state.done,
    logprobs=state.logprobs,
  )


def _prefill(
  config: VlmConfig, params: Params, features: Array | None, tokens: Array, valid: Array
) -> _Prefilled:
  """Returns prompts after the prefill."""
  last = _last(valid)[:, None]
  x, kv = multimodal.prefill(config, params, features, tokens, valid=valid, places=last)
  return _Prefilled(
    last=x,
    kv=kv,
    count=jnp.sum(valid, axis=1)[:, None],
    positions=multimodal.positions_of(valid)[:, None],
    valid=valid[:, None],
  )


def _prefill_tails(
  config: VlmConfig,
  params: Params,
  features: Array | None,
  tokens: Array,
  valid: Array,
  tails: Tails,
) -> _Prefilled:
  """Returns prompts that begin with `tokens` after one prefill, in rows of a head and its tails."""
  b, g, e = tails.tokens.shape
  end = tokens.shape[1]
  row, row_valid = (
    jnp.concatenate([head, tail.reshape(b, g * e)], axis=1)
    for head, tail in ((tokens, tails.tokens), (valid, tails.valid))
  )
  branches = gemma.Branches(end, g)
  last = end + e * jnp.arange(g) + _last(tails.valid)
  x, kv = multimodal.prefill(
    config, params, features, row, valid=row_valid, branches=branches, places=last
  )
  return _Prefilled(
    last=x,
    kv=kv,
    count=jnp.sum(valid, axis=1)[:, None] + jnp.sum(tails.valid, axis=2),
    positions=branches.each(multimodal.positions_of(row_valid, branches)),
    valid=branches.each(row_valid),
  )


def _last(valid: Array) -> Array:
  """Returns i32[...], the places of the last valid tokens of bool[...,T]."""
  return valid.shape[-1] - 1 - jnp.argmax(valid[..., ::-1], axis=-1)


def draw(
  config: VlmConfig,
  sc: SampleConfig,
  params: Params,
  x: Array,
  keys: Array,
  t: Array,
  *,
  temperatures: Array | None = None,
) -> tuple[Array, Array]:
  """Returns the t-th tokens i32[B,G] for hidden states [B,G,D], and their log-probs f32[B,G]."""
  if temperatures is None:
    greedy, cold = sc.temperature < _GREEDY_BELOW, None
    temperature = 1.0 if greedy else sc.temperature
  else:
    greedy, cold = False, temperatures[:, None] < _GREEDY_BELOW
    temperature = jnp.where(cold, 1.0, temperatures[:, None])[..., None]
  logits = multimodal.sampling_logits(
    config, params, x, banned=sc.banned_ids, temperature=temperature
  )
  # All logits of a sample go to one device, by one mesh axis at a time: XLA cannot move two.
  logits = mesh_lib.constrain(logits, "rows", None, mesh_lib.TENSOR)
  if x.shape[1] > 1:
    logits = mesh_lib.constrain(logits, "rows", mesh_lib.TENSOR)
  else:
    logits = mesh_lib.constrain(logits, "all")
  if greedy:
    tokens = likeliest_token(logits)
  else:
    uniform = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, t), (2,)))
    tokens = draw_token(logits, uniform(keys.reshape(-1)).reshape(*keys.shape, 2))
    if cold is not None:
      tokens = jnp.where(cold, likeliest_token(logits), tokens)
  return tokens, multimodal.logprob_and_entropy(logits, tokens)[0]


def likeliest_token(logits: Array) -> Array:
  """Returns i32[...], the first argmax of [...,V].

  In two plain reductions: `argmax` carries value and index along, which XLA does not vectorise.
  """
  vocab = logits.shape[-1]
  behind = logits < jnp.max(logits, axis=-1, keepdims=True)
  return jnp.min(jnp.where(behind, vocab, jnp.arange(vocab, dtype=jnp.int32)), axis=-1)


def draw_token(logits: Array, u: Array) -> Array:
  """Returns i32[...], tokens drawn from softmax(logits[...,V]) with u f32[...,2] in [0,1).

  First the block of the vocabulary, then the token in it: two random numbers per token, where
  Gumbel noise takes V. On a CPU those cost a third of a step of 100 M parameters.
  """
  vocab = logits.shape[-1]
  p = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
  p = jnp.pad(p, [(0, 0)] * (p.ndim - 1) + [(0, -p.shape[-1] % _BLOCK)])
  blocks = p.reshape(*p.shape[:-1], -1, _BLOCK)
  i = _draw_index(jnp.sum(blocks, axis=-1), u[..., 0])
  block = jnp.take_along_axis(blocks, i[..., None, None], axis=-2)[..., 0, :]
  # Of logits that are not finite no token has a weight, and the last would be one of the padding.
  return jnp.minimum(i * _BLOCK + _draw_index(block, u[..., 1]), vocab - 1)


def _draw_index(weights: Array, u: Array) -> Array:
  """Returns i32[...]: where the running sum of weights [...,V] passes u[...] times their sum.

  An index of weight 0 is never returned, whatever the rounding.
  """
  running = jnp.cumsum(weights, axis=-1)
  passed = (running > u[..., None] * running[..., -1:]) & (weights > 0)
  n = weights.shape[-1]
  last = n - 1 - jnp.argmax(weights[..., ::-1] > 0, axis=-1)
  return jnp.where(jnp.any(passed, axis=-1), jnp.argmax(passed, axis=-1), last).astype(jnp.int32)


def _record(sc: SampleConfig, s: _State, drawn: tuple[Array, Array], over: Array) -> _State:
  """Writes what was drawn into column t of the samples that are not over."""
  token, logp = (jnp.where(over, jnp.zeros_like(d), d) for d in drawn)
  stops = jnp.zeros_like(s.done)
  for stop in sc.stop_ids:
    stops = stops | (token == stop)

  def put(column: Array, into: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(into, column[..., None], s.t, axis=2)

  return dataclasses.replace(
    s,
    t=s.t + 1,
    tokens=put(token, s.tokens),
    logprobs=put(logp, s.logprobs),
    length=s.length + ~over,
    # One that is over holds zeros, and 0 may itself be a terminator: only live ones can stop.
    done=s.done | (stops & ~over),
  )
