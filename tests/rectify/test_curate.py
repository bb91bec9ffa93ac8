# SPDX-License-Identifier: Apache-2.0
"""Curation is even, capped, deterministic, and never sees an oracle."""

import collections
import dataclasses
import random

import pytest

from auditdm_jax.audit import attempt, probe
from auditdm_jax.rectify import curate


def _candidates(**counts):
  return [
    curate.TrainingExample(
      image_id=f"im{i}",
      question=f"{group} {i}",
      label="yes",
      group=group,
      source=f"ckpt{i % 3}",
      provenance={"probe_id": f"{group}{i}"},
    )
    for group, n in counts.items()
    for i in range(n)
  ]


def test_groups_take_turns_up_to_the_cap():
  examples, stats = curate.curate(
    _candidates(a=500, b=40, c=7), curate.Config(size=100, cap=0.4), seed=0
  )
  assert stats.by_group == {"a": 40, "b": 40, "c": 7} and stats.taken == 87 and stats.short == 13
  assert len(examples) == 87 == len({e.key for e in examples})
  even, _ = curate.curate(_candidates(a=500, b=40, c=7), curate.Config(size=30, cap=1.0), seed=0)
  count = collections.Counter(e.group for e in even)
  assert count["c"] == 7 and abs(count["a"] - count["b"]) <= 1


def test_sources_share_a_group():
  _, stats = curate.curate(_candidates(a=300), curate.Config(size=90, cap=1.0), seed=0)
  assert set(stats.by_source.values()) == {30}


def test_an_unbalanced_draw_keeps_the_proportions_but_for_the_cap():
  config = curate.Config(size=200, cap=1.0, balanced=False)
  _, stats = curate.curate(_candidates(a=900, b=100), config, seed=0)
  assert 160 <= stats.by_group["a"] <= 195
  _, capped = curate.curate(_candidates(a=900, b=100), dataclasses.replace(config, cap=0.5), seed=0)
  assert capped.by_group == {"a": 100, "b": 100}


def test_same_set_same_examples_and_another_seed_others():
  candidates = _candidates(a=50, b=50)
  first, _ = curate.curate(candidates, curate.Config(size=20), seed=0)
  shuffled = random.Random(0).sample(candidates, len(candidates))
  assert curate.curate(shuffled, curate.Config(size=20), seed=0)[0] == first
  assert curate.curate(candidates, curate.Config(size=20), seed=1)[0] != first
  assert first != sorted(first, key=lambda e: e.group)


def test_repeats_are_one_example_and_conflicts_none():
  one = _candidates(a=1)[0]
  again = dataclasses.replace(one, question=" A  0", source="ckpt9")
  other = dataclasses.replace(one, image_id="x")
  against = dataclasses.replace(other, label="no")
  examples, stats = curate.curate(
    [again, one, other, against], curate.Config(size=9, cap=1.0), seed=0
  )
  assert [e.question for e in examples] == ["a 0"]
  assert (stats.duplicates, stats.conflicting, stats.offered) == (1, 2, 4)


def test_nothing_found_nothing_taken():
  examples, stats = curate.curate([], curate.Config(size=10), seed=0)
  assert examples == [] and stats.short == 10


@pytest.mark.parametrize("bad", [{"size": 0}, {"cap": 0.0}, {"cap": 1.5}])
def test_bad_settings(bad):
  with pytest.raises(ValueError, match="positive"):
    curate.Config(**bad)


def test_a_find_teaches_the_consensus_whatever_the_independent_judge_said():
  verdict = probe.Verdict(
    probe_id="p",
    answers={"t": "two", "r": "three"},
    target="t",
    references=("r",),
    consensus="three",
    agree=True,
    disagreement=True,
    reason="disagreement",
  )
  asked = probe.Probe(probe_id="p", image_id="i", question="q", arm="grpo", step=30)
  find = attempt.Attempt(probe=asked, verdict=verdict).find
  opinion = attempt.Opinion(by="oracle", side="neither", answer="five")
  failure = attempt.Failure.of(find, grade="V1", opinion=opinion, mode_id="m")
  example = curate.TrainingExample.of(failure, group="dial")
  assert example == curate.TrainingExample.of(find, group="dial")
  assert (example.label, example.source, example.group) == ("three", "grpo@30", "dial")
  assert example.provenance["probe_id"] == "p"


def test_without_a_consensus_there_is_nothing_to_teach():
  asked = attempt.Attempt(probe=probe.Probe.make("i", "q"), verdict=None)
  with pytest.raises(ValueError, match="no consensus"):
    curate.TrainingExample.of(asked, group="")
