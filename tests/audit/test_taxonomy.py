# SPDX-License-Identifier: Apache-2.0
"""Planted gaps come back as modes; noise does not; ids and modes are stable."""

import json

import numpy as np
import pytest

from auditdm_jax.audit.mode import Mode, plain
from auditdm_jax.audit.skills import Assigner, Seeds, load_kinds, load_seeds
from auditdm_jax.audit.taxonomy import Taxonomy, discover_modes, gather, members, name_modes
from auditdm_jax.audit.words import TermLexicon
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


def test_a_target_that_fails_everywhere_alike_has_no_mode(world, seeds, attempt):
  rng = np.random.default_rng(0)
  drawn, _ = world(0, 1500, [])
  failing = [attempt(a.probe.question, a.consensus, bool(rng.random() < 0.6)) for a in drawn]
  assert discover_modes(failing, seeds).modes == (), "no comparison speaks for a mode"


def test_numbers_are_one_mode(seeds, attempt):
  rng = np.random.default_rng(0)
  numbers = "one two three four five six seven eight nine".split()
  attempts = []
  for _ in range(4000):
    shape, n = rng.choice(["circle", "square", "star"]), int(rng.integers(9))
    failed = bool(rng.random() < (0.9 if n > 5 else 0.03))
    attempts.append(attempt(f"how many {shape}s are there", numbers[n], failed))
    attempts.append(attempt(f"is there a red {shape}", "yes", bool(rng.random() < 0.03)))
  taxonomy = discover_modes(attempts, seeds)
  assert [m.terms for m in taxonomy.modes] == [("a:number > 6",)]
  assert taxonomy.match(["how many stars are there"] * 2, ["11", "6"]) == [taxonomy.modes[0], None]


def test_a_kind_of_things_is_one_mode(seeds, attempt):
  rng = np.random.default_rng(0)
  vehicles, others = "car bus truck train boat plane".split(), "dog cat cup tree chair".split()
  attempts = []
  for _ in range(5000):
    word = str(rng.choice([*vehicles, *others]))
    form = str(rng.choice(["is there a {} here", "what color is the {}", "where is the {}"]))
    failed = bool(rng.random() < (0.85 if word in vehicles else 0.05))
    attempts.append(attempt(form.format(word), "yes", failed))
  kinds = Seeds(seeds.skills, seeds.categories, {"vehicle": (*vehicles, "fire truck")})
  modes = discover_modes(attempts, kinds).modes
  assert [m.terms for m in modes] == [("q:[vehicle]",)] and "any vehicle" in modes[0].name
  assert len(discover_modes(attempts, seeds).modes) > 3, "without kinds it is a mode a word"


def test_names_say_kinds_in_words():
  assert plain("[shape] + column four") == "any shape + column four" and plain("red") == "red"


def test_siblings_with_one_rate_are_merged_and_others_are_not(seeds, attempt):
  rng = np.random.default_rng(0)

  def modes(green: float):
    rates = {"red": 0.9, "green": green}
    attempts = []
    for _ in range(6000):
      colour = str(rng.choice("red green blue yellow purple cyan".split()))
      failed = bool(rng.random() < rates.get(colour, 0.02))
      attempts.append(attempt("what color is the circle", colour, failed))
      attempts.append(attempt("is there a star", "no", bool(rng.random() < 0.02)))
    return discover_modes(attempts, seeds).modes

  (both,) = modes(green=0.88)
  assert set(both.terms) == {"a:red", "a:green"} and len(both.rules) == 2
  assert both.name == "color_of: answer=red / answer=green"
  assert len(modes(green=0.4)) == 2


def test_possible_is_what_an_answer_may_still_make_true(seeds, world):
  taxonomy = discover_modes(world(0, 4000, ["dial", "purple", "digit seven"])[0], seeds)
  attempts, _ = world(1, 1000, ["dial", "purple", "digit seven"])
  matched = _match(taxonomy, attempts)
  possible = taxonomy.possible([a.probe.question for a in attempts])
  assert all(m is None or m.mode_id in p for m, p in zip(matched, possible, strict=True))
  asked = dict(zip((a.probe.question for a in attempts), possible, strict=True))
  names = {m.mode_id: m.name for m in taxonomy.modes}
  assert {names[i] for i in asked["what does the dial read"]} == {"dial"}
  unlikely = {names[i] for i in asked["is there a green circle"]}
  assert not any("digit" in name or "dial" in name for name in unlikely)


def test_members_of_evidence_are_those_that_match(seeds, world):
  attempts, _ = world(4, 3000, ["purple", "column four", "digit seven"])
  evidence = gather(attempts, seeds)
  taxonomy = name_modes(evidence)
  of = [taxonomy.modes[i] if i >= 0 else None for i in members(taxonomy, evidence)]
  assert of == _match(taxonomy, attempts)


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
  words = tmp_path / "kinds.yaml"
  words.write_text("vehicle: [bus, fire truck]")
  assert load_kinds(words) == {"vehicle": ("bus", "fire truck")}
  assert "[vehicle]" in TermLexicon(load_kinds(words)).terms("is the fire truck red")
  words.write_text("vehicle: bus")
  with pytest.raises(ValueError, match="list of words"):
    load_kinds(words)
  for bad, message in [
    ("- {name: x}", "description"),
    ("- {name: x, description: y, patern: z}", "unknown key 'patern'"),
    ("- {name: x, description: y, pattern: '('}", "bad pattern"),
    ("- {name: x, description: y}\n- {name: x, description: y}", "twice"),
  ]:
    path.write_text(bad)
    with pytest.raises(ValueError, match=message):
      load_seeds(path)
