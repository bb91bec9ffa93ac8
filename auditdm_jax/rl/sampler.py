# SPDX-License-Identifier: Apache-2.0
"""The auditor's pen: groups of completions for prompts about images, each draw a pure function.

Every random number is fold_in(walk, prompt, turn, sample, token): sample (prompt, g) is the
same in any order of the batch and after any resume. Programs are compiled per (kind of reply,
shape); parameters are an argument.
"""

from collections.abc import Sequence
import functools
from typing import Any

import jax
import numpy as np

from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.core import runtime, streams
from auditdm_jax.models import decode, multimodal
from auditdm_jax.rl.batch import AuditorReply
from auditdm_jax.text import prompts as prompts_lib
from auditdm_jax.vlm import Vlm


class Sampler:
  """Samples with the architecture, tokenizer and template of a Vlm, and the current params."""

  def __init__(
    self, auditor: Vlm, *, seed: int, temperature: float, mesh: jax.sharding.Mesh | None = None
  ):
    """Takes the auditor; its own params are not used.

    Args:
      auditor: the initial auditor.
      seed: the seed of the run.
      temperature: of the sampling distribution.
      mesh: the one that the params lie on; prompts are split over it.
    """
    self.auditor, self._tokenizer = auditor, auditor.writer()
    self._seed = seed
    self._temperature = temperature
    self._mesh = mesh
    self.banned = self._tokenizer.unsampled_ids(auditor.stop_ids)

  def length(self, text: str) -> int:
    """Tokens of a prompt, image slots included."""
    return len(self.prompt(text))

  def prompt(self, text: str) -> tuple[int, ...]:
    """Token ids of a prompt, image slots included."""
    vlm = self.auditor
    return tuple(
      prompts_lib.render(self._tokenizer, vlm.template, text, vlm.config.num_image_tokens)
    )

  def sample(
    self,
    params: Any,
    prompts: Sequence[tuple[int, ...]],
    *,
    features: np.ndarray,
    image_ids: Sequence[str],
    kind: str,
    width: int,
    max_new_tokens: int,
    walk: tuple[int | str, ...],
    turn: int,
    uids: np.ndarray,
    samples: np.ndarray,
  ) -> list[list[AuditorReply]]:
    """Draws a group of replies for each prompt.

    Args:
      params: tree of the current auditor.
      prompts: B prompts of at most `width` tokens.
      features: f32[B,P,Dv] of their images.
      image_ids: B ids, for the record.
      kind: of the reply, for the record.
      width: static prompt length.
      max_new_tokens: C, static.
      walk: the name of the walk that the prompts are from.
      turn: 0 or 1.
      uids: i32[B] the numbers of the prompts in it.
      samples: i32[B,G] sample numbers g.

    Returns:
      [B][G] turns.
    """
    # Every device has an equal share; what a sample is does not depend on its row.
    shards = 1 if self._mesh is None else mesh_lib.row_shards(self._mesh)
    rows = np.minimum(np.arange(-(-len(prompts) // shards) * shards), len(prompts) - 1)
    tokens = np.zeros((len(prompts), width), np.int32)
    valid = np.zeros((len(prompts), width), bool)
    for row, prompt in enumerate(prompts):
      tokens[row, : len(prompt)], valid[row, : len(prompt)] = prompt, True
    sc = decode.SampleConfig(max_new_tokens, self._temperature, self.auditor.stop_ids, self.banned)
    key = streams.key_data(self._seed, "sample", *walk)
    placed = [self._place(np.asarray(x)[rows]) for x in (features, tokens, valid)]
    which = np.asarray(uids, np.int32)[rows], np.asarray(samples, np.int32)[rows]
    with mesh_lib.use(self._mesh):
      drawn = sample_rows(self.auditor.config, sc, params, *placed, key, np.int32(turn), *which)
    host = runtime.fetch(drawn)  # One transfer for all rows.
    return [
      [
        AuditorReply(
          kind=kind,
          image_id=image_ids[p],
          prompt=tuple(prompt),
          text=self._tokenizer.decode(host.tokens[p, g, : host.length[p, g]]),
          tokens=host.tokens[p, g],
          logprobs=host.logprobs[p, g],
          length=int(host.length[p, g]),
          truncated=bool(host.truncated[p, g]),
        )
        for g in range(host.tokens.shape[1])
      ]
      for p, prompt in enumerate(prompts)
    ]

  def _place(self, x: np.ndarray) -> Any:
    if self._mesh is None:
      return x
    return runtime.place(x, mesh_lib.rows_sharding(self._mesh, x.shape[0]))


def compile_count() -> int:
  """Sampling programs compiled so far in this process."""
  return runtime.programs(sample_rows)


@functools.partial(
  jax.jit, static_argnames=("config", "sc"), compiler_options=runtime.PLAIN_KERNELS
)
def sample_rows(
  config: multimodal.VlmConfig,
  sc: decode.SampleConfig,
  params: Any,
  features: jax.Array,
  tokens: jax.Array,
  valid: jax.Array,
  key: jax.Array,
  turn: jax.Array,
  uids: jax.Array,
  samples: jax.Array,
) -> decode.Samples:
  """The program: `samples` i32[B,G] of prompts `uids` i32[B], see `Sampler.sample`."""
  fold = jax.random.fold_in
  base = jax.random.wrap_key_data(key)

  def row_key(uid, g):
    return fold(fold(fold(base, uid), turn), g)

  keys = jax.vmap(jax.vmap(row_key, (None, 0)))(uids, samples)
  return decode.sample(
    config, sc, params, features, tokens, valid=valid, group=samples.shape[1], row_keys=keys
  )
