# SPDX-License-Identifier: Apache-2.0
"""All benchmarks can be imported into one process: absl refuses a flag that two of them define."""

import importlib
import pathlib

import pytest

from auditdm_jax.audit.attempt import Attempt
from auditdm_jax.audit.probe import Probe, Verdict
from auditdm_jax.core.config import build
from auditdm_jax.stages.sections import AuditConfig
from benchmarks import talking

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"


def test_no_two_benchmarks_define_one_flag():
  for path in sorted(BENCHMARKS.glob("*.py")):
    importlib.import_module(f"benchmarks.{path.stem}")


def _attempt(target, reference, *, step=0):
  """What was said of the colour of a ring, compared as it is."""
  probe = Probe.make("i", "what color is the ring", step=step)
  verdict = Verdict(
    probe_id=probe.probe_id,
    answers={"t": target, "a": reference, "b": reference},
    target="t",
    references=("a", "b"),
    consensus=reference,
    agree=True,
    disagreement=target != reference,
    reason="disagreement" if target != reference else "agreement",
  )
  return Attempt(probe=probe, verdict=verdict)


@pytest.mark.parametrize(
  ("target", "reference", "kind"),
  [
    ("The ring is red.", "red", "wording"),
    ("(B) grey", "The ring is gray.", "wording"),
    ("It is blue.", "The ring is red.", "real"),
    ("blue", "It is purple.", "other"),  # The oracle says red.
    ("It is red.", "I cannot tell.", "other"),  # The references give no answer.
  ],
)
def test_talking_tells_real_finds_from_those_of_wording(target, reference, kind):
  find = _attempt(target, reference).find
  assert talking.kind_of(find, "red", abstentions=("unanswerable",)) == kind


def test_talking_counts_each_kind_among_all_completions():
  rows = [(_attempt("blue", "red", step=i), "real") for i in range(3)]
  rows += [(_attempt("It is red.", "red", step=i), "wording") for i in range(3)]
  rows += [(_attempt("red", "red", step=i), None) for i in range(4)]
  assert talking.split(rows, 0, 4)[1:] == ("30.0", "30.0", "0.0")
  agree, success, precision = talking.outcome(rows, 2)
  assert (agree.k, agree.n) == (4, 4) and (success.k, success.n) == (1, 4)
  assert (precision.k, precision.n) == (1, 2)


@pytest.mark.parametrize("arm", talking.ARMS)
def test_an_arm_of_talking_is_a_config(arm):
  config = talking.config_of(arm, steps=3, target="rare", seed=1, data=pathlib.Path("data"))
  settings = build(AuditConfig, config, name="config")
  assert settings.world.talk.talks == (arm != "words")
  assert bool(settings.judge.synonyms) == (arm == "styled")
  styles = {settings.bank.style_of(name, None) for name in ("target_rare", "ref_gemma3")}
  assert (styles == {None}) == (arm != "raw")
