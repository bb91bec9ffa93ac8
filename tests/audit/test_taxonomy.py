# SPDX-License-Identifier: Apache-2.0
"""Planted gaps come back as modes; noise does not; ids and modes are stable."""

import json

import numpy as np
import pytest

from auditdm_jax.audit.skills import Assigner, Seeds, load_seeds
from auditdm_jax.audit.taxonomy import Mode, Taxonomy, discover_modes
from auditdm_jax.core import jsonio, typed


def _match(taxonomy, attempts):
  return taxonomy.match([a.probe.question for a in attempts], [a.consensus for a in attempts])


@pytest.mark.parametrize("seed", range(6))
def test_planted_gaps_are_found(seed, world, gap_names, seeds):
  rng = np.random.default_rng(seed)
  gaps = [str(g) for g in rng.choice(gap_names, 5, replace=False)]
  taxonomy = discover_modes(world(seed, 4000, gaps)[0], seeds)
  fresh, truth = world(seed + 1000, 3000, gaps)
  modes = _match(taxonomy, fresh)
  for gap in gaps:
    inside = [m is not None for m, t in zip(modes, truth) if gap in t]
    assert np.mean(inside) >= 0.95, gap
  for mode in taxonomy.modes:
    pure = [bool(t) for m, t in zip(modes, truth) if m is mode]
    assert np.mean(pure) >= 0.95, mode.name
    assert mode.k / mode.n > 0.85 and mode.lower <= mode.k / mode.n


@pytest.mark.parametrize("seed,noise", [(0, 0.03), (1, 0.03), (2, 0.2), (3, 0.4)])
def test_no_gap_no_mode(seed, noise, world, seeds):
  assert discover_modes(world(seed, 3000, [], noise=noise)[0], seeds).modes == ()


def test_names_and_kinds(world, seeds):
  attempts, _ = world(0, 4000, ["dial", "purple", "star counts", "digit seven"])
  taxonomy = discover_modes(attempts, seeds)
  modes = {m.name: m for m in taxonomy.modes}
  assert set(modes) == {"dial", "colour purple", "count_shape: star", "digit: answer=seven"}
  assert modes["dial"].kind == "skill" and modes["colour purple"].kind == "cross"
  assert len(modes["colour purple"].skills) >= 3
  assert "seven" in modes["digit: answer=seven"].definition
  asked = ["how many stars are there", "is there a red star"]
  assert taxonomy.match(asked, ["two", "yes"]) == [modes["count_shape: star"], None]


def test_modes_that_share_a_word_are_one_family():
  def mode(name, k, *terms):
    return Mode(
      mode_id=f"m-{name}",
      name=name,
      kind="term",
      skills=(),
      terms=terms,
      definition="",
      rules=(),
      n=k,
      k=k,
      lower=0.5,
      q_value=0.0,
    )

  modes = (
    mode("a", 50, "q:column four", "a:none"),
    mode("b", 40, "any:column four", "a:blue"),
    mode("c", 30, "q:purple", "a:none"),  # "none" is shared too, but "column four" came first
    mode("d", 20, "q:purple"),
    mode("e", 90),
    mode("f", 10, "a:blue"),
  )
  families = Taxonomy(Seeds(()), modes).families
  assert families == {
    "m-a": "column four",
    "m-b": "column four",
    "m-c": "purple",
    "m-d": "purple",
    "m-e": "e",
    "m-f": "f",
  }


def test_unjudged_attempts_do_not_count(world, seeds, attempt):
  attempts, _ = world(0, 2000, ["dial"])
  silent = [attempt("what does the dial read", None, False)] * 5000
  a, b = discover_modes(attempts, seeds), discover_modes(attempts + silent, seeds)
  assert [(m.mode_id, m.n) for m in a.modes] == [(m.mode_id, m.n) for m in b.modes]
  assert discover_modes(silent, seeds).modes == ()


def test_failures_outside_every_skill_become_residual_or_other(world, seeds, attempt):
  attempts, _ = world(0, 1500, [])
  odd = [
    attempt(f"could the tall {w} giraffe drive this lorry", "yes", True)
    for w in ("brown", "sleepy", "happy")
    for _ in range(10)
  ]
  modes = discover_modes(attempts + odd, seeds).modes
  assert len(modes) == 1 and modes[0].k == 30 and "giraffe" in modes[0].definition + modes[0].name


def test_taxonomy_survives_json_and_is_deterministic(world, seeds):
  attempts, _ = world(3, 3000, ["purple", "corner", "dial east"])
  a, b = discover_modes(attempts, seeds), discover_modes(attempts, seeds)
  assert a.modes == b.modes
  again = typed.load(Taxonomy, json.loads(json.dumps(jsonio.plain(a))))
  assert again.modes == a.modes
  assert [m and m.mode_id for m in _match(again, attempts[:300])] == [
    m and m.mode_id for m in _match(a, attempts[:300])
  ]


def test_discovery_counts_match_the_frozen_predicate(world, seeds):
  attempts, _ = world(4, 3000, ["purple", "column four", "digit seven"])
  taxonomy = discover_modes(attempts, seeds)
  matched = _match(taxonomy, attempts)
  for mode in taxonomy.modes:
    assert sum(m is mode for m in matched) == mode.n, mode.name


def test_fresh_rates(world, seeds):
  taxonomy = discover_modes(world(0, 3000, ["dial", "purple"])[0], seeds)
  fresh, _ = world(1, 3000, ["purple"])
  names = {m.mode_id: m.name for m in taxonomy.modes}
  got = {names[mode_id]: r for mode_id, r in taxonomy.fresh_rates(fresh).items()}
  assert got["dial"].rate < 0.1 and got["colour purple"].rate > 0.9
  assert got["dial"].ci95[0] <= got["dial"].rate <= got["dial"].ci95[1]


def test_assignment(seeds):
  got = Assigner(seeds)(["how many purple objects are there", "why do stars twinkle at night"])
  assert got[0][0] == "count_color" and got[1][0] is None
  assert Assigner(Seeds(()))(["anything"])[0] == (None, 0.0)


def test_seed_files(tmp_path):
  path = tmp_path / "skills.yaml"
  path.write_text(
    "- {name: clock, description: Reading a clock., pattern: '^what time'}\n"
    "- {name: colour, description: Naming a colour., examples: [what color is the car]}\n"
  )
  seeds = load_seeds(path)
  assert Assigner(seeds)(["what time is it", "what color is the bus"])[0] == ("clock", 1.0)
  for bad, message in [
    ("- {name: x}", "description"),
    ("- {name: x, description: y, patern: z}", "unknown key 'patern'"),
    ("- {name: x, description: y, pattern: '('}", "bad pattern"),
    ("- {name: x, description: y}\n- {name: x, description: y}", "twice"),
  ]:
    path.write_text(bad)
    with pytest.raises(ValueError, match=message):
      load_seeds(path)
