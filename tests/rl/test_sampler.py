# SPDX-License-Identifier: Apache-2.0
"""The sampler's promises; several are known bugs of other codebases, by name."""

import dataclasses

import jax
import numpy as np
import pytest

from auditdm_jax.rl import sampler as sampler_lib
from tests.rl import fakes, tiny

PAD = 0
P, G, C = 4, 8, 6


def auditor():
  """Ends its replies with <pad>, which is also token 0, or with two other ids."""
  return dataclasses.replace(tiny.auditor(), stop_ids=(PAD, 21, 19))


def sample(vlm=None, *, seed=3, walk=("train",), turn=0, uids=None, params=None, temperature=1.0):
  vlm = vlm or auditor()
  sampler = sampler_lib.Sampler(vlm, seed=seed, temperature=temperature)
  task = sampler.prompt("ask")
  return sampler.sample(
    vlm.params if params is None else params,
    [task] * P,
    # The same image, so that rows differ by their draws alone.
    features=fakes.features(["x"] * P),
    image_ids=["x"] * P,
    kind="question",
    width=len(task),
    max_new_tokens=C,
    walk=walk,
    turn=turn,
    uids=np.arange(P) if uids is None else np.asarray(uids),
    samples=np.tile(np.arange(G), (P, 1)),
  )


def tokens(turns):
  return [[tuple(t.tokens[: t.length]) for t in row] for row in turns]


@pytest.fixture(scope="module")
def drawn():
  return sample()


def flat(turns):
  return [turn for row in turns for turn in row]


def test_pad_equal_to_eos_ends_a_reply_and_counts(drawn):
  ended = [t for t in flat(drawn) if not t.truncated and t.tokens[t.length - 1] == PAD]
  assert ended
  for turn in ended:
    assert turn.logprobs[turn.length - 1] < 0  # drawn, not filled in


def test_each_of_a_set_of_terminators_ends_a_reply(drawn):
  stops = set(auditor().stop_ids)
  last = {int(t.tokens[t.length - 1]) for t in flat(drawn) if not t.truncated}
  assert last == stops
  for turn in flat(drawn):
    assert not stops & set(turn.tokens[: turn.length - 1].tolist())


def test_truncation_is_the_samplers_word(drawn):
  """Not a comparison of lengths: a reply may end with its last token."""
  stops = set(auditor().stop_ids)
  full = [t for t in flat(drawn) if t.length == C]
  assert {t.truncated for t in full} == {True, False}
  for turn in flat(drawn):
    assert turn.truncated == (int(turn.tokens[turn.length - 1]) not in stops)
    assert turn.length == C or not turn.truncated


def test_seeds_differ_per_walk_turn_prompt_and_sample(drawn):
  first = tokens(drawn)
  assert tokens(sample()) == first
  rows = [
    *first,
    *tokens(sample(walk=("round2",))),
    *tokens(sample(turn=1)),
    *tokens(sample(seed=4)),
  ]
  # Prompts and image are the same: every row of G replies is another one all the same.
  assert len({tuple(row) for row in rows}) == len(rows) == 4 * P
  for row in rows:
    assert len(set(row)) > G // 2


def test_a_sample_does_not_depend_on_its_place_in_the_batch(drawn):
  order = [2, 0, 3, 1]
  again = tokens(sample(uids=order))
  assert again == [tokens(drawn)[i] for i in order]


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_banned_ids_are_never_sampled_however_likely(temperature):
  """The image id gets all of the probability but for the ban."""
  vlm = auditor()
  table = np.zeros_like(vlm.params["llm"]["embedder"]["input_embedding"])
  table[vlm.config.image_token_id] = np.random.default_rng(0).normal(0, 50, table.shape[1])
  embedder = vlm.params["llm"]["embedder"] | {"input_embedding": table}
  params = vlm.params | {"llm": vlm.params["llm"] | {"embedder": embedder}}
  turns = flat(sample(vlm, params=params, temperature=temperature))
  banned = set(sampler_lib.Sampler(vlm, seed=0, temperature=1.0).banned)
  assert vlm.config.image_token_id in banned and not banned & set(vlm.stop_ids)
  assert not banned & {int(x) for t in turns for x in t.tokens[: t.length]}
  for turn in turns:
    # What is left is uniform over the ids that may be drawn.
    want = -np.log(vlm.config.text.vocab_size - len(banned))
    np.testing.assert_allclose(turn.logprobs[: turn.length], want, rtol=1e-5)


def test_a_second_call_compiles_nothing(drawn):
  count = sampler_lib.compile_count()
  params = jax.tree.map(lambda x: x * 0.9, auditor().params)
  sample(params=params, walk=("ask", 7))
  assert sampler_lib.compile_count() == count
