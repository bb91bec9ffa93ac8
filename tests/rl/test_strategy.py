# SPDX-License-Identifier: Apache-2.0
"""Strategies as values: the five, what counts as a usable reply, and a sixth from outside."""

import os
import pathlib
import subprocess
import sys
import types

import pytest

from auditdm_jax.core.config import UserError
from auditdm_jax.rl import strategy
from auditdm_jax.rl.draws import RolloutConfig
from auditdm_jax.rl.strategy import Malformed, Strategy, Turn
from tests.rl import fakes, tiny


def test_prompts_quote_the_first_turn_in_the_second_and_nowhere_else():
  for each in strategy.BUILT_IN:
    assert "{first}" not in each.turns[0].prompt
    assert all(turn.prompt.count("{first}") == 1 for turn in each.turns[1:])
  with pytest.raises(UserError, match="did you mean 'edit-only'"):
    strategy.find("edit_olny", strategy.BUILT_IN)


@pytest.mark.parametrize(
  "text, want",
  [
    ("How many cups are there?", "How many cups are there?"),
    ("  Question: How many?\n", "How many?"),
    ('"How many?"', "How many?"),
    ('Is the sign "STOP"', 'Is the sign "STOP"'),
    ("is 3 < 4 in the image?", "is 3 < 4 in the image?"),
  ],
)
def test_usable_replies(text, want):
  assert strategy.one_line(text, 400) == want


@pytest.mark.parametrize(
  "text, reason",
  [
    ("", "empty"),
    (' "" ', "empty"),
    ("Question:", "empty"),
    ("one\ntwo", "more than one line"),
    ("a\u2028b", "more than one line"),
    ("a\x1b[31m", "control characters"),
    ("word " * 100, "longer than 400"),
    ("what<end_of_turn>", "'<end_of_turn>'"),
    ("<unk> is red", "'<unk>'"),
    ("<script>alert(1)", "'<script>'"),
    ("?!", "no word"),
  ],
)
def test_unusable_replies(text, reason):
  reply = strategy.one_line(text, 400)
  assert isinstance(reply, Malformed) and reason in reply.reason


SKETCH = Turn("sketch", "describe")
WRONG = {
  "has 0 turns": {"turns": ()},
  "first turn must be about the source": {"turns": (Turn("question", "ask", "made"),)},
  "makes='paint'": {"turns": (SKETCH,), "makes": "paint", "question": "data"},
  "about a made image": {"turns": (SKETCH, Turn("question", "ask", "made"))},
  "what the image is made from": {
    "turns": (Turn("question", "ask"), Turn("question", "ask")),
    "makes": "edit",
  },
  "its last turn writes a 'sketch'": {"turns": (SKETCH,), "makes": "generate"},
  "its last turn writes a 'question'": {"turns": (Turn("question", "a"),), "question": "data"},
}


@pytest.mark.parametrize("message", WRONG)
def test_strategies_that_cannot_be_meant_are_refused(message):
  with pytest.raises(UserError, match=message):
    Strategy("mine", **WRONG[message])


def two_lines(text, max_chars):
  words = text.split()
  return " ".join(words[:2])[:max_chars] if len(words) > 1 else Malformed("one word")


@pytest.fixture
def outsider(monkeypatch):
  """A module outside the package with two strategies: a new kind of text, and no image at all."""
  module = types.ModuleType("outsider")
  module.SKETCH = Strategy(
    "sketch",
    (Turn("sketch", "describe a", parse=two_lines), Turn("question", "ask {first}", "made")),
    makes="generate",
  )
  module.LOOK_TWICE = Strategy(
    "look-twice", (Turn("caption", "describe"), Turn("question", "ask {first}"))
  )
  module.TAKEN = Strategy("edit", module.LOOK_TWICE.turns)
  monkeypatch.setitem(sys.modules, "outsider", module)
  strategy.known.cache_clear()
  yield module
  strategy.known.cache_clear()


LENGTHS = {"question": 5, "caption": 7, "instruction": 6, "sketch": 6}


def test_strategies_from_outside_are_strategies_like_the_five(outsider):
  client = fakes.Client()
  made = fakes.rollout(
    {"question": 1, "sketch": 2, "look_twice": 1},
    strategies=("outsider:SKETCH", "outsider:LOOK_TWICE"),
    max_new_tokens=LENGTHS,
    client=client,
  )
  result = made.step(tiny.auditor().params, 0)
  assert list(made.config.counts()) == ["sketch", "look-twice", "question"]
  by = {
    name: [r for r in result.records if r["probe"]["strategy"] == name]
    for name in made.config.counts()
  }
  assert {name: len(rows) for name, rows in by.items()} == {
    "sketch": 8,
    "look-twice": 4,
    "question": 4,
  }
  drawn = [r for r in by["sketch"] if r["verdict"] is not None]
  for r in drawn:
    assert [t["kind"] for t in r["turns"]] == ["sketch", "question"]
    assert (
      r["probe"]["image_id"] != r["probe"]["source_image_id"]
      and len(r["probe"]["caption"].split()) == 2
    )
    assert (r["probe"]["caption"], r["probe"]["seed"]) in client.requests
  asked = [r for r in by["look-twice"] if r["verdict"] is not None]
  for r in asked:
    assert [t["kind"] for t in r["turns"]] == ["caption", "question"]
    assert r["probe"]["image_id"] == r["probe"]["source_image_id"] and r["probe"]["seed"] == 0
  assert drawn and asked
  # One part for first turns, one for second turns of both.
  assert [p.prompt.shape[0] for p in result.batch.parts] == [4, 12]
  assert {r["malformed"] for r in by["sketch"]} & {"one word"}


def test_a_strategy_from_outside_needs_a_length_and_a_name_of_its_own(outsider):
  with pytest.raises(UserError, match="max_new_tokens.sketch: missing key"):
    RolloutConfig({"sketch": 1}, strategies=("outsider:SKETCH",))
  with pytest.raises(UserError, match="two strategies are called 'edit'"):
    RolloutConfig({"edit": 1}, strategies=("outsider:TAKEN",))
  with pytest.raises(UserError, match="unknown strategy"):
    RolloutConfig({"sketch": 1})


ROOT = pathlib.Path(__file__).parents[2]
MINE = """
from auditdm_jax.rl.strategy import Strategy, Turn

SKETCH = Strategy("sketch", (Turn("sketch", "describe"), Turn("question", "ask {first}", "made")),
                  makes="generate")

def brevity(facts):
  return 1.0 / (1 + len(facts.tokens))
"""
FLAGS = [
  "--config.rollout.strategies=('mine:SKETCH',)",
  "--config.rollout.prompts.sketch=2",
  "--config.rollout.max_new_tokens.sketch=9",
]
KNOWN = {
  # plan then names all programs of the config.
  "sample caption, sample sketch, sample question, sample question again": ["('mine:brevity', 1)"],
  "has no 'brevty' (did you mean 'brevity'?)": ["('mine:brevty', 1)"],
  "no module 'mien'; it must be installed, or lie in the directory": ["('mien:brevity', 1)"],
}


@pytest.mark.parametrize("message", KNOWN)
def test_a_user_names_code_in_the_folder_that_the_command_is_run_in(tmp_path, message):
  (tmp_path / "mine.py").write_text(MINE)
  (tmp_path / "data").symlink_to(ROOT / "data")
  command = [sys.executable, "-m", "auditdm_jax", "plan", f"--config={ROOT}/configs/scenes.py"]
  terms = ", ".join(KNOWN[message])
  done = subprocess.run(
    [*command, "--topology=cpu:1", "--only=none", *FLAGS, f"--config.reward.terms=({terms},)"],
    cwd=tmp_path,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert done.returncode == 2 and message in done.stderr, done.stderr
  assert len(done.stderr.splitlines()) == 1
