# SPDX-License-Identifier: Apache-2.0
"""The ledger of two models: every status, and silence about a model compared with itself."""

import dataclasses
import json

import numpy as np
import pytest

from auditdm_jax.audit.compare import PairedOutcome, compare, pairs, summary_counts
from auditdm_jax.audit.judge import Judge


def _pairs(mode, n, old_rate, new_rate, seed=0):
  rng = np.random.default_rng(seed)
  old, new = rng.random(n) < old_rate, rng.random(n) < new_rate
  return [
    PairedOutcome(mode, f"{mode}{i}", f"{i}.png", bool(a), bool(b))
    for i, (a, b) in enumerate(zip(old, new))
  ]


def test_pairs_need_both_answers():
  found = pairs(
    ["m"] * 4,
    list("abcd"),
    list("1123"),
    ["red"] * 3 + [None],
    ["red", "", "blue", "red"],
    ["blue", "red", "", "red"],
    judge=Judge(),
  )
  assert found == [PairedOutcome("m", "a", "1", False, True)]


def test_statuses():
  items = (
    _pairs("gone", 100, 0.95, 0.01)
    + _pairs("better", 200, 0.9, 0.5)
    + _pairs("worse", 200, 0.1, 0.5)
    + _pairs("fresh", 200, 0.02, 0.9)
    + _pairs("same", 600, 0.0, 0.0)
    + _pairs("thin", 10, 0.3, 0.5)
  )
  got = compare(items, known=["gone", "better", "worse", "same", "thin"])
  status = {e.mode_id: e.status for e in got.entries}
  assert status == {
    "gone": "fixed",
    "better": "improved",
    "worse": "regressed",
    "fresh": "new",
    "same": "unchanged",
    "thin": "unsure",
  }
  thin = next(e for e in got.entries if e.mode_id == "thin")
  assert thin.needs_more > 10 and got.entries[0].mode_id == "fresh"
  assert got.exit_code() == 1 and len(got.significant) == 4
  assert summary_counts(got.counts()) == (
    "1 new, 1 regressed, 1 improved, 1 fixed, 1 unchanged, 1 unsure"
  )
  json.dumps(got.to_dict())


def test_a_model_against_itself():
  items = []
  for i, rate in enumerate(np.linspace(0, 1, 30)):
    items += [
      dataclasses.replace(p, new_failed=p.old_failed)
      for p in _pairs(f"m{i}", 20 + 10 * i, rate, 0, seed=i)
    ]
  got = compare(items)
  assert not got.significant and got.exit_code() == 0
  assert got.exit_code(strict=True) in (0, 3)


def test_a_model_against_itself_whose_flips_come_in_images_is_rarely_significant():
  """McNemar's test of probes has a significant mode in all of these."""
  rng, found = np.random.default_rng(0), 0
  for _ in range(40):
    items = []
    for mode in range(6):
      shaky = rng.choice([-1, 0, 0, 0, 0, 1], 12)  # A third of the images flip, all of each alike.
      items += [
        PairedOutcome(f"m{mode}", f"{image}-{i}", f"{image}", way < 0, way > 0)
        for image, way in enumerate(shaky)
        for i in range(8)
      ]
    found += bool(compare(items).significant)
  assert found <= 4


def test_flips_that_come_in_images_are_not_a_change():
  """Per probe, 24 flips against 8 are significant; of images they are 3 against 1."""
  flips = [(True, False)] * 3 + [(False, True)] + [(True, True)] * 8
  items = [
    PairedOutcome("m", f"{image}-{i}", f"{image}.png", old, new)
    for image, (old, new) in enumerate(flips)
    for i in range(8)
  ]
  entry = compare(items).entries[0]
  assert entry.status == "unsure" and entry.p == pytest.approx(5 / 8) and entry.new.images == 12
  alone = [dataclasses.replace(item, image_id=item.probe_id) for item in items]
  assert compare(alone).entries[0].p < 0.01 and compare(alone).entries[0].needs_more == 0
  assert entry.needs_more > 500


def test_pairs_leave_out_what_says_nothing():
  got = pairs(
    ["m", None, "m", "m"],
    ["1", "2", "3", "4"],
    ["a", "b", "c", "d"],
    ["red", "red", None, "dog"],
    ["Red", "x", "x", "dog"],
    ["blue", "x", "x", "poodle"],
    judge=Judge(),
  )
  assert got == [PairedOutcome("m", "1", "a", False, True)]


def test_a_probe_counts_once():
  one = [PairedOutcome("m", "1", "a", True, False)] * 50
  assert compare(one).entries[0].status == "unsure"
  assert compare([]).entries == ()


def _asked_twice(rng, *, modes=6, images=12, each=8, flips=0.2, shared=0.9):
  """A model against itself: some answers flip, a share of them with their whole image."""
  out = []
  for mode in range(modes):
    fails = rng.random((images, 1)) < 0.4
    sides = []
    for _ in range(2):
      together = rng.random((images, 1)) < flips
      alone = rng.random((images, each)) < flips
      moved = np.where(rng.random((images, each)) < shared, together, alone)
      sides.append(fails ^ moved)
    out += [
      PairedOutcome(f"m{mode}", f"{mode}-{i}-{j}", f"{i}.png", bool(a[j]), bool(b[j]))
      for i, (a, b) in enumerate(zip(*sides))
      for j in range(each)
    ]
  return out


def test_a_model_asked_twice_is_significant_in_few_runs():
  """At most 5 % of runs (here of 60, with 3 more by chance); per probe it would be far more."""
  by_image = by_probe = 0
  for seed in range(60):
    items = _asked_twice(np.random.default_rng(seed))
    by_image += bool(compare(items).significant)
    alone = [dataclasses.replace(item, image_id=item.probe_id) for item in items]
    by_probe += seed < 20 and bool(compare(alone).significant)
  assert by_image <= 6 and by_probe >= 10, (by_image, by_probe)


def test_as_many_more_as_it_says_are_enough():
  """Where all of a few probes change, among lines that do not."""
  rest = [p for i in range(17) for p in _pairs(f"m{i}", 40, 1.0, 1.0)]

  def entry(n):
    return next(
      e for e in compare([*_pairs("few", n, 1.0, 0.0), *rest]).entries if e.mode_id == "few"
    )

  few = entry(4)
  assert few.status == "unsure" and few.needs_more > 1
  assert entry(4 + few.needs_more).status in ("improved", "fixed")


def test_one_level_holds_over_all_modes():
  """Six losses and no gain have p = 1/32: a change alone, and chance among thirty modes."""
  lost = [PairedOutcome("m", f"m{i}", f"{i}", False, i < 6) for i in range(40)]
  still = [
    PairedOutcome(f"s{k}", f"s{k}-{i}", f"{i}", False, False) for k in range(30) for i in range(40)
  ]
  (alone,) = compare(lost).entries
  assert alone.status == "regressed" and alone.p == alone.q == pytest.approx(1 / 32)
  among = next(e for e in compare(lost + still).entries if e.mode_id == "m")
  assert among.status == "unsure" and among.q == pytest.approx(31 / 32)
