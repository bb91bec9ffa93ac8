# SPDX-License-Identifier: Apache-2.0
"""The report of a run: what the stages hand over is all that its pages need."""

import json
import types

from auditdm_jax.audit import health, judge, rates
from auditdm_jax.audit.probe import Failure, Probe, Verdict
from auditdm_jax.audit.skills import Seeds, Skill
from auditdm_jax.bench import evaluate as bench
from auditdm_jax.stages import evaluate, loop, report, train
from auditdm_jax.stages.attempts import Attempt
from auditdm_jax.stages.sections import NamingConfig
from auditdm_jax.stages.worlds import World


class Run:
  """What `loop.summarise` and `report.run` read of a context; its world has no oracle."""

  target = types.SimpleNamespace(name="t")
  sibling, references, world = None, {"a": None, "b": None}, World()
  settings = types.SimpleNamespace(
    seed=0, taxonomy=NamingConfig(), bank=types.SimpleNamespace(max_new_tokens=3)
  )
  seeds = Seeds((Skill("color_of", "The colour of a thing.", ("what color is the ring",)),))

  def __init__(self, workdir, rows, done):
    self.workdir, self._rows, self._done = workdir, rows, done

  def pool(self, name):
    assert name == "images"

  def done(self, stage):
    return json.loads(json.dumps(self._done[stage]))

  def records(self, name):
    return types.SimpleNamespace(read=lambda _: json.loads(json.dumps(self._rows.get(name, []))))


def _attempt(i, arm):
  probe = Probe.make(f"i{i}", "what color is the ring", arm=arm)
  verdict = Verdict(
    probe_id=probe.probe_id, answers={"t": "red", "a": "blue", "b": "blue"}, target="t",
    references=("a", "b"), consensus="blue", agree=True, disagreement=True, reason="disagreement",
  )  # fmt: skip
  return Attempt(probe, verdict)


def _failure(i, arm, mode_id, grade="V1"):
  a = _attempt(i, arm)
  return Failure(probe=a.probe, verdict=a.verdict, grade=grade, mode_id=mode_id)


def _without_oracle(workdir, attempts):
  """A run of `attempts`, of which none was verified, and its summary."""
  right = {n: ["blue"] * 4 for n in "tab"}
  held = bench.evaluate(
    lambda chunk: ["blue"] * len(chunk),
    [
      bench.Example(
        example_id=str(i), image=i, image_id=f"h{i}", question="q", references=("blue",)
      )
      for i in range(4)
    ],
    model="t",
  )
  table = evaluate.by_group(held)
  evaluated = {
    "tables": dict.fromkeys("tab", table),
    "auditable": [],
    "health": health.health(
      right, right["t"], judge.Judge(), target="t", references=("a", "b")
    ).to_dict(),
  }
  fresh = rates.rate(2, 3)
  mode = {
    "mode_id": "m", "name": "rings", "definition": "About rings.", "skills": ["color_of"],
    "fresh": fresh, "confirmed": 0, "gap": None, "gap_share": 0.0,
  }  # fmt: skip
  verified = {
    "funnel": {"attempted": 1, "finds": 1, "looked_at": 1, "stable": 0, "independent_agrees": 0},
    "precision": None, "modes": [mode],
  }  # fmt: skip
  run = Run(
    workdir,
    {"discover": [a.to_dict() for a in attempts]},
    {"evaluate": evaluated, "verify": verified},
  )
  cover = {"effective_modes": 0.0, "effective_skills": 0.0, "per_gap": {}}
  searched = {
    "prompt_only": rates.rate(0, 0), "prompt_only_modes": cover,
    "trained": rates.rate(0, 0), "trained_modes": cover,
  }  # fmt: skip
  repaired = {"repaired": {"table": table, "examples": 0}}
  summary = loop.summarise(run, evaluated, searched, {}, verified, repaired, {})
  summary["seconds"] = {"total": 1.0}
  return run, json.loads(json.dumps(summary))


def test_a_run_without_an_oracle_is_reported_and_nothing_is_said_to_be_zero(tmp_path, capsys):
  run, summary = _without_oracle(tmp_path, [_attempt(0, "random")])
  index = report.run(run, summary)
  text = index.read_text(encoding="utf-8")
  for word in ("Precision", "independent agrees", "onfirmed finds"):
    assert word not in text
  assert "Planted gaps" not in text and "Accuracy after repair" in text
  assert "–, n = 0" in text  # of the control, which asked nothing, and of the gaps
  for label in ("Gaps", "Effective modes", "Modes only here"):
    cells = [c.split("</td>")[0] for c in text.split(f'data-label="{label}"')[1:]]
    assert cells and all("–" in c for c in cells), label
  methods = (index.parent / "methods.html").read_text(encoding="utf-8")
  assert "<code>precision</code></th><td>–<" in methods
  assert "<code>modes.precision</code></th><td>–, n = 0<" in methods
  loop.show(summary)
  shown = capsys.readouterr().out
  assert "arm random" in shown and "precision" not in shown and "gaps found" not in shown


def test_an_arm_has_the_modes_it_was_first_to_find():
  failures = [
    _failure(0, train.NAME, "m1"), _failure(1, "random", "m1"), _failure(2, "random", "m2"),
    _failure(3, "untrained", "m3", grade="V0"), _failure(4, "random", None),
  ]  # fmt: skip
  row = {
    "queries": 9, "verified": rates.rate(1, 9), "gaps_found": 1, "effective_modes": 1.0,
    "unseen_mass": None,
  }  # fmt: skip
  names = ("grpo", "untrained", "random", "all of the above", "control: random, equal queries")
  arms = report._arms({"arms": dict.fromkeys(names, row)}, failures, oracle=True)
  assert [a.modes_found for a in arms] == [1, 0, 2, 2, None]


def test_a_repair_has_the_queries_that_found_its_examples():
  r = {"all": rates.rate(1, 2), "gaps": rates.rate(1, 2), "rest": rates.rate(0, 0)}
  arms = ("baseline", "larger_sibling", "repaired", "control_random", "control_mined")
  rows = report._rectify(
    {"rectify": dict.fromkeys(arms, r), "queries": {"total": 30, "control_random": 20}}
  )
  assert [row.queries for row in rows] == [None, None, 30, None, 20]
  assert all(row.note for row in rows)
