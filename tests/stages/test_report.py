# SPDX-License-Identifier: Apache-2.0
"""The report of a run: what the stages hand over is all that its pages need."""

import dataclasses
import json
import types

import pytest

from auditdm_jax.audit import health, rates
from auditdm_jax.audit import judge as judge_lib
from auditdm_jax.audit.attempt import Attempt, Failure, Opinion
from auditdm_jax.audit.probe import Probe, Verdict
from auditdm_jax.audit.skills import Seeds, Skill
from auditdm_jax.audit.summary import Accuracy, Arm, Queries, Summary
from auditdm_jax.audit.taxonomy import Taxonomy
from auditdm_jax.audit.verify import Tally, VerifyConfig, View
from auditdm_jax.core import jsonio, typed
from auditdm_jax.core.config import UserError
from auditdm_jax.rl.step import OptimConfig
from auditdm_jax.stages import report, screen, summarise
from auditdm_jax.stages.results import Evaluated, Found, ModeRow, RepairedModel, Repairs, Verified
from auditdm_jax.stages.rounds import AuditRound
from auditdm_jax.stages.run import TRAIN
from auditdm_jax.stages.sections import NamingConfig, RoundsConfig
from auditdm_jax.stages.truth import Oracle
from auditdm_jax.stages.worlds import World
from tests.audit.report import sample


class Folder:
  """A run's folder in memory."""

  manifest = types.SimpleNamespace(read=lambda: {"version": 1, "stages": {}})

  def __init__(self, path, attempts, results):
    self.path, self._attempts, self._results = path, attempts, results

  def done(self, stage, cls):
    if stage not in self._results:
      return None
    return typed.load(cls, json.loads(json.dumps(jsonio.plain(self._results[stage]))))

  def attempts(self):
    return self._attempts

  def completions(self):
    return []

  def swept(self):
    return self._attempts

  def ranked(self):
    return []

  def seconds(self):
    return {"verify": 1.0}

  def write_summary(self, summary):
    jsonio.write_json(self.path / "summary.json", summary)

  control = failures = graded = sample = labels = completions


class Run:
  """What `summarise` and `report.run` read of a context; its world has no oracle."""

  models = types.SimpleNamespace(
    target_name="t",
    sibling_name="",
    references={"a": None, "b": None},
    target_is_remote=False,
  )
  world, judge = World(), judge_lib.Judge()
  oracle = Oracle(world, images={}.__getitem__, judge=judge)
  settings = types.SimpleNamespace(
    seed=0,
    taxonomy=NamingConfig(),
    bank=types.SimpleNamespace(max_new_tokens=3),
    optim=OptimConfig(),
    verify=VerifyConfig(),
    rounds=RoundsConfig(),
    rectify=types.SimpleNamespace(enabled=True),
  )
  seeds = Seeds((Skill("color_of", "The colour of a thing.", ("what color is the ring",)),))

  def __init__(self, folder):
    self.folder, self.round = folder, AuditRound(1, folder.path)

  def later(self):
    return {}

  def pool(self, role):
    assert role == "images"

  def spent(self):
    return {"answers/t": 54_072}


def _attempt(i, arm, said="red"):
  probe = Probe.make(f"i{i}", "what color is the ring", arm=arm)
  verdict = Verdict(
    probe_id=probe.probe_id,
    answers={"t": said, "a": "blue", "b": "blue"},
    target="t",
    references=("a", "b"),
    consensus="blue",
    agree=True,
    disagreement=said != "blue",
    reason="agreement" if said == "blue" else "disagreement",
  )
  return Attempt(probe=probe, verdict=verdict)


def _failure(i, arm, mode_id, grade="V1"):
  return Failure.of(_attempt(i, arm).find, grade=grade, mode_id=mode_id)


def _without_oracle(workdir, attempts):
  """A run of `attempts`, of which none was verified."""
  right = {n: ["blue"] * 4 for n in "tab"}
  table = {"all": rates.rate(4, 4)}
  ensemble = health.health(
    right, [[said] for said in right["t"]], judge_lib.Judge(), target="t", references=("a", "b")
  )
  evaluated = Evaluated(dict.fromkeys("tab", table), (), ensemble)
  mode = ModeRow(
    mode_id="m",
    name="rings",
    definition="About rings.",
    skills=("color_of",),
    found=Found(2, 3),
    fresh=rates.rate(2, 3),
    confirmed=0,
    gap=None,
    gap_share=0.0,
  )
  funnel = {"attempted": 1, "finds": 1, "looked_at": 1, "stable": 0}
  verified = Verified(funnel, Taxonomy(Run.seeds, ()), (mode,))
  repairs = Repairs({"repaired": RepairedModel(table, 0)})
  done = {"evaluate": evaluated, "verify": verified, "rectify": repairs}
  return Run(Folder(workdir, attempts, done))


def test_a_run_without_an_oracle_is_reported_and_nothing_is_said_to_be_zero(tmp_path, capsys):
  run = _without_oracle(tmp_path, [_attempt(0, "random")])
  summary = report.run(run)
  read = jsonio.read_json(tmp_path / "summary.json")
  assert typed.load(Summary, read) == summary
  assert read["coverage"] is read["search"] is read["queries"]["control_random"] is None
  index = tmp_path / "report/index.html"
  text, missing = index.read_text(encoding="utf-8").split('id="not-measured"')
  for word in ("Precision", "independent agrees", "onfirmed finds"):
    assert word not in text
  assert "Planted gaps" not in text and "Accuracy after repair" in text
  assert "control: random" not in text
  for label in ("Effective modes", "Modes only here"):
    assert f'data-label="{label}"' not in text, label
  for what in ("effective modes", "equal queries", "A view from outside", "other wordings"):
    assert what in missing, what
  assert "A repair" not in missing and "Accuracy" not in missing
  methods = (index.parent / "methods.html").read_text(encoding="utf-8")
  for key in ("precision", "modes.precision", "coverage", "arms.random.modes"):
    assert f"<code>{key}</code></th><td>not measured<" in methods, key
  summary = dataclasses.replace(summary, target="vl[v2]-7b[/b]")
  screen.show(summary, tmp_path, spent={"answers/t": 54_072, "abstention/t": 9, "endpoint/t": 3})
  shown = capsys.readouterr().out
  assert f"queries {summary.queries.total:,} (the audit's questions about images)" in shown
  assert "answers 54,072 by t (to all that was asked)" in shown
  assert "arm random" in shown and "precision" not in shown and "gaps found" not in shown
  assert "no failure found, but 1 conflicts were not looked at" in shown


def test_nothing_found_is_a_result_with_its_bound():
  same = _attempt(0, "random", said="blue")
  none = summarise.compared([same], [])
  assert none.verdict.startswith("no failure found: looked at 1 questions")
  assert none.verdict.endswith(f"below {rates.rate(0, 1).ci95[1]:.2%} (95 %)")
  found = _attempt(1, "random")
  failure = Failure.of(found.find, grade="V1")
  both = summarise.compared([same, found, found], [failure])
  assert (both.failures.k, both.failures.n, both.asked) == (1, 2, 2)
  assert "1 failures verified among 2 questions" in both.verdict
  assert "none of 0 questions can be compared" in summarise.compared([], []).verdict


def test_a_report_before_verify_says_what_to_run(tmp_path):
  with pytest.raises(UserError, match="run the stage verify first"):
    report.run(Run(Folder(tmp_path, [], {})))


def test_a_report_says_of_each_gate_what_was_measured_and_who_gave_v2(tmp_path):
  run, index = _without_oracle(tmp_path, [_attempt(0, "random")]), tmp_path / "report/index.html"
  verified = run.folder.done("verify", Verified)
  gates = {
    "both_ways": Tally(rates.rate(9, 10), 0, True),
    "answerable": Tally(rates.NOTHING, 1234, True),
  }
  sides = {"labels": View(rates.rate(6, 9), {"target": 2, "neither": 1}, 31)}
  funnel = verified.funnel | {"answerable": 9}
  changed = dataclasses.replace(verified, gates=gates, sides=sides, funnel=funnel)
  run.folder._results["verify"] = changed
  report.run(run)
  text = index.read_text(encoding="utf-8")
  table = text.partition('id="gates"')[2].partition("</section>")[0]
  both, answerable, _, labels = table.split("<tr>")[2:]
  assert "9 of 10" in both and "–, n = 0" in answerable and "1,234" in answerable
  assert "not measured of 1,234 finds" in text.partition('id="funnel"')[2]
  assert "6 of 9" in labels and "target 2, neither 1" in labels and ">31<" in labels
  assert "V2 is not measured" not in text
  run.folder._results["verify"] = dataclasses.replace(changed, sides={})
  report.run(run)
  assert "V2 is not measured" in index.read_text(encoding="utf-8")


def test_a_card_says_who_gave_which_answer():
  failure = _failure(0, "random", "m")
  assert report._opinion(failure) == ("", None)
  opinion = Opinion(by="labels", side="consensus", answer="blue", note="of 10, 9 give it")
  shown = report._opinion(dataclasses.replace(failure, opinion=opinion))
  assert shown == ("labels: consensus", "blue · of 10, 9 give it")


def test_an_arm_has_the_modes_it_was_first_to_find():
  failures = [
    _failure(0, TRAIN, "m1"),
    _failure(1, "random", "m1"),
    _failure(2, "random", "m2"),
    _failure(3, "untrained", "m3", grade="V0"),
    _failure(4, "random", None),
  ]
  row = Arm(
    queries=9,
    verified=rates.rate(1, 9),
    confirmed_unique=1,
    gaps_found=1,
    queries_to_gaps=(7,),
    modes=None,
  )
  names = ("grpo", "untrained", "random", "all of the above", "control: random, equal queries")
  summary = types.SimpleNamespace(arms=dict.fromkeys(names, row))
  arms = report._arms(summary, failures, oracle=True)
  assert [a.modes_found for a in arms] == [1, 0, 2, 2, None]


def test_a_repair_has_the_queries_that_found_its_examples():
  half = rates.rate(1, 2)
  r = Accuracy(all=half, gaps=half, rest=rates.NOTHING, sources={"probes": 3})
  arms = ("baseline", "larger_sibling", "repaired", "control_random", "control_mined")
  queries = Queries(10, 10, 20, total=30, control_random=20, verify_looked_at=5)
  summary = types.SimpleNamespace(rectify=dict.fromkeys(arms, r), queries=queries)
  rows = report._rectify(summary)
  assert [row.queries for row in rows] == [None, None, 30, None, 20]
  assert all(row.note for row in rows)


def test_what_the_sweep_picked_is_not_read_as_an_arms_own_rate():
  names = ["grpo", "random", "all of the above", "control: random, equal queries"]
  arms = dict.fromkeys(names, Arm(9, rates.rate(1, 9), 1, None, None, None))
  run = dataclasses.replace(sample.loop_summary(), arms=arms)

  def picked(summary):
    return [cell for cell in screen.table(summary).columns[0].cells if "picked of it" in str(cell)]

  assert picked(run) == ["arm random, what was picked of it"]
  assert not picked(dataclasses.replace(run, sweep=None))
