# SPDX-License-Identifier: Apache-2.0
"""A small made-up audit for the report's tests, some of its text hostile."""

import dataclasses
import pathlib

import numpy as np
from PIL import Image

from auditdm_jax.audit import calibration, health
from auditdm_jax.audit.attempt import Attempt, Failure, Gate, Stability
from auditdm_jax.audit.diversity import Diversity, HillEstimate, Spread
from auditdm_jax.audit.hacks import ArmHacks, HackCounts
from auditdm_jax.audit.judge import Judge
from auditdm_jax.audit.probe import Probe, Verdict
from auditdm_jax.audit.rates import NOTHING, Rate
from auditdm_jax.audit.report import data
from auditdm_jax.audit.summary import (
  ALL_ARMS,
  Accuracy,
  Compared,
  Coverage,
  CurvePoint,
  Kinds,
  ModeScores,
  Queries,
  RoundRow,
  Search,
  SearchModes,
  Summary,
  Sweep,
  Yield,
  YieldPoint,
)

HOSTILE = "<script>alert('x')</script> \" onerror='y' \u202egnp.elif\u202c & \x00 \ud800"
LONG = "W" * 400


def rate(k, n):
  p = k / n
  half = 2 * (p * (1 - p) / n) ** 0.5
  return Rate(k, n, p, (max(p - half, 0.0), min(p + half, 1.0)))


def varied(common):
  value = HillEstimate(common, (common - 1, common + 1.5))
  spread = Spread(92, HillEstimate(0.94, (0.9, 0.98)), value, value, value)
  return Diversity(512, spread, spread)


def scores(gaps, rest):
  return dict(
    all=rate(int(0.2 * gaps * 1000 + 0.8 * rest * 1000), 1000),
    gaps=rate(int(200 * gaps), 200),
    rest=rate(int(800 * rest), 800),
  )


def _image(path: pathlib.Path, seed: int, *, changed: bool = False) -> pathlib.Path:
  rng = np.random.default_rng(seed)
  array = np.full((64, 64, 3), 235, np.uint8)
  for _ in range(4):
    y, x = rng.integers(0, 4, 2) * 16
    array[y + 3 : y + 13, x + 3 : x + 13] = rng.integers(0, 255, 3)
  if changed:
    array[20:30, 36:46] = (40, 90, 200)
  Image.fromarray(array).save(path)
  return path


def _card(folder: pathlib.Path, i: int, question: str, *, edited: bool) -> data.Card:
  return data.Card(
    probe_id=f"9f{i:04d}ab",
    question=question,
    target="easy",
    answers={"easy": "three", "ref-a": "five", "ref-b": "five", "ref-c": "five"},
    consensus="five",
    truth="five",
    grade="V2",
    original=_image(folder / f"o{i}.png", i),
    edited=_image(folder / f"e{i}.png", i, changed=True) if edited else None,
    strategy="edit" if edited else "question",
    gates=(
      Gate(name="stable", passed=True, value=5, limit=">= 4"),
      Gate(name="paraphrase", passed=True, value=1.0, limit=">= 1"),
      Gate(name="locality", passed=i % 3 > 0, value=0.0417, limit="< 0.04"),
      Gate.unmeasured("answerable", "no other wording of the question"),
    ),
    lineage={
      "auditor": "grpo/step-000090",
      "seed": "17",
      "instruction": "make the red circle green",
    },
    command=f"python -m auditdm_jax verify --config=configs/scenes.py --probe=9f{i:04d}ab",
  )


def failure(i: int, question: str, *, grade: str = "V1", **more) -> Failure:
  """A find of the sample; its id is as if hashed."""
  probe = Probe.make(f"{i:064x}", question, strategy="question", arm="sweep")
  verdict = Verdict(
    probe_id=probe.probe_id,
    answers={"easy": "three", "ref-a": "five", "ref-b": "five"},
    target="easy",
    references=("ref-a", "ref-b"),
    consensus="five",
    agree=True,
    disagreement=True,
    reason="disagreement",
  )
  find = Attempt(probe=probe, verdict=verdict).find
  assert find is not None
  return Failure.of(find, grade=grade, **more)


def find_list(folder: pathlib.Path, n: int = 12) -> data.FindList:
  """Finds of which a third fell out, with all of them on the page."""
  texts = ["how many red circles are there ?", HOSTILE, "=cmd|'/c calc'!A0", "what color is it ?"]
  stop = Gate(name="answerable", passed=False, value=0.0, limit=">= 1", note="3 answers")
  failures = [
    failure(
      i,
      f"{texts[i % 4]} {i}",
      grade="V0" if i % 3 == 0 else "V1",
      gates=(stop,) if i % 3 == 0 else (),
      stability=Stability(k=3, n=3),
      mode_id=f"count-color/{i % 5}",
    )
    for i in range(n)
  ]
  rows = [
    data.FindRow(
      card=dataclasses.replace(
        _card(folder, 100 + i, f.probe.question, edited=False),
        probe_id=f.probe.probe_id,
        grade=f.grade,
      ),
      mode_id=f.mode_id or "",
      mode=f"mode {i % 5}",
      arm="sweep",
      why="answerable: 3 answers" if i % 3 == 0 else "",
    )
    for i, f in enumerate(failures)
  ]
  modes = {f"count-color/{i}": f"mode {i}" for i in range(5)}
  return data.FindList(
    failures=failures, total=len(failures), shown=rows, required=("answerable",), modes=modes
  )


def reference_health() -> health.Health:
  """Of 1000 questions, easy errs on 400, ref-a on 50, ref-b on 80 and ref-c on 60 of those 80."""
  wrong = {
    "easy": range(400),
    "ref-a": range(390, 440),
    "ref-b": range(400, 480),
    "ref-c": range(420, 480),
  }
  answers = {n: ["four" if i in w else "five" for i in range(1000)] for n, w in wrong.items()}
  references = ("ref-a", "ref-b", "ref-c")
  return health.health(answers, [["five"]] * 1000, Judge(), target="easy", references=references)


def calibration_of(predicted: list[float], found: list[bool]) -> calibration.Calibration:
  """A surrogate's; each question is about an image of its own."""
  images = [str(i) for i in range(len(found))]
  made = calibration.calibration(predicted, found, images, where="sweep")
  assert made is not None
  return made


def hacked(wrong: int) -> HackCounts:
  """Of 200 finds, so many with a wrong consensus; nobody looked at artefacts."""
  return HackCounts(200, rate(wrong, 200), rate(2, 200), rate(5, 100), NOTHING)


def yielded(*, checked: bool = True) -> Yield:
  """An arm that finds a gap in a hundred queries."""
  points = [
    YieldPoint(100 * i, 300 * i, 40 * i, 38 * i if checked else None, i, None, rate(38, 40))
    for i in (1, 2, 3)
  ]
  return Yield(tuple(points), seconds=60.0, flops={"answers": 3e12})


def loop_summary() -> Summary:
  """A loop with an oracle."""
  kinds = Kinds(modes=varied(8.4), per_gap={})
  shares = {5: 0.25, 10: 0.5}
  points = [CurvePoint(step, share, 80, (0.1, 0.6), 3.0) for step, share in shares.items()]
  return Summary(
    target="easy",
    compared=Compared(30000, rate(640, 20000), {"no consensus": 10000}, 0),
    search=Search(prompt_only=rate(44, 200), trained=rate(640, 1000)),
    search_modes=SearchModes(kinds, kinds),
    precision=rate(628, 640),
    coverage=Coverage(900, {}, 6, 6, (90, 200, 210, 350, 800, 3100), varied(8.4).equal_finds, None),
    gaps={},
    modes=ModeScores(recall=rate(6, 6), precision=rate(5, 6), found=6),
    rectify={
      "baseline": Accuracy(**scores(0.24, 0.97)),
      "repaired": Accuracy(**scores(0.75, 0.965), examples=2000),
    },
    reaudit=rate(109, 1000),
    reaudits=(),
    later=(),
    arms={},
    strategies={},
    curve=tuple(points),
    queries=Queries(46080, 30000, 11277, 57357, 57357, 4000),
    seconds=dict(train=61.2, report=1.4),
    sweep=Sweep(rate(10_500, 11_277), 180_432, 2_690.0, 0.96, rate(9_900, 10_400), {}),
    calibration=(calibration_of([0.1] * 60 + [0.9] * 40, [False] * 57 + [True] * 43),),
    hacks={ALL_ARMS: ArmHacks(hacked(12), hacked(1))},
    yields={ALL_ARMS: yielded(), "control: random, equal queries": yielded(checked=False)},
  )


def report_data(folder: pathlib.Path, *, modes: int = 5, cards: int = 3) -> data.ReportData:
  """Every section filled; images are written to `folder`."""
  names = [
    "counts above three",
    "purple objects",
    "dial readings",
    "fourth column",
    "absent objects",
  ]
  views = []
  for i in range(modes):
    questions = ["how many red circles are there ?", HOSTILE, LONG, "what color is the star ?"]
    views.append(
      data.ModeView(
        mode_id=f"count-color/{i}",
        name=names[i % 5] if i else names[0] + " <b>& more</b>",
        skill="count color",
        definition="Questions of the skill count color whose consensus is one of four, five, six.",
        members=41 - 3 * i,
        rate=rate(170 - 28 * i, 200),
        cards=tuple(
          _card(folder, 10 * i + j, questions[j % 4], edited=j % 2 == 0) for j in range(cards)
        ),
      )
    )
  steps = list(range(0, 121, 5))
  return data.ReportData(
    title="Audit of easy in the scenes world",
    target="easy",
    created="2025-11-02 14:10 UTC",
    references=("ref-a", "ref-b", "ref-c"),
    summary=loop_summary(),
    funnel=(
      data.FunnelRow(name="probes attempted", count=4000),
      data.FunnelRow(name="well formed", count=3890),
      data.FunnelRow(name="references agree", count=3512),
      data.FunnelRow(name="target conflicts", count=1720, note="finds"),
      data.FunnelRow(name="gates passed", count=1498),
      data.FunnelRow(name="stable", count=1410, note="greedy, paraphrases and jitters"),
    ),
    modes=tuple(views),
    arms=(
      data.ArmRow(
        name="auditor, step 60",
        queries=9120,
        confirmed=rate(512, 800),
        gaps_found=6,
        gaps_after=(90, 200, 210, 350, 800, 3100),
        modes_found=9,
        varied=varied(7.9),
      ),
      data.ArmRow(
        name="untrained auditor",
        queries=3200,
        confirmed=rate(92, 400),
        gaps_found=5,
        gaps_after=(300, 310, 900, 1800, 3000),
        modes_found=6,
        varied=varied(5.1),
      ),
      data.ArmRow(name="random questions", queries=3200, confirmed=rate(88, 400)),
    ),
    curves=(
      data.Curve(
        name="coverage",
        steps=steps,
        success=[0.22 + 0.4 * (1 - 0.97**s) for s in steps],
        effective_modes=[9.4 - 0.02 * s for s in steps],
      ),
      data.Curve(
        name="plain reward",
        steps=steps,
        success=[0.22 + 0.76 * (1 - 0.95**s) for s in steps],
        effective_modes=[2.1 + 7.2 * 0.97**s for s in steps],
      ),
    ),
    strategies=(
      data.StrategyView(name="question", confirmed=rate(400, 700)),
      data.StrategyView(
        name="edit", confirmed=rate(120, 300), faithful=rate(291, 300), only_here=1
      ),
    ),
    rectify=(
      data.RectifyRow(name="before repair", **scores(0.24, 0.97)),
      data.RectifyRow(name="repaired", **scores(0.75, 0.965), examples=2000, queries=50120),
      data.RectifyRow(
        name="random questions + consensus",
        **scores(0.57, 0.97),
        examples=2000,
        queries=6939,
        note="same number of examples",
      ),
      data.RectifyRow(name="larger sibling, not repaired", **scores(0.31, 0.98)),
    ),
    rounds=(
      data.RoundView(
        name="1",
        row=RoundRow(
          1, 6, 6, 6, rate(12, 640), 57357, 2000, labels=rate(1980, 2000), repaired=rate(5, 6)
        ),
        rest="+0.5 points",
        seconds=61.0,
        changed=(
          data.RoundModeRow(
            name="counts above three", before=rate(170, 200), after=rate(61, 200), status="improved"
          ),
          data.RoundModeRow(
            name="dial readings", before=rate(198, 200), after=rate(2, 200), status="fixed"
          ),
        ),
      ),
      data.RoundView(
        name="2",
        row=RoundRow(2, 1, 1, 0, rate(3, 40), 7680),
        rest="",
        seconds=None,
        found=(
          data.RoundModeRow(
            name="exact counts of shapes", before=None, after=rate(44, 200), status="new"
          ),
        ),
      ),
    ),
    health=reference_health(),
    methods=(("Consensus", "All three references give the same answer after normalisation."),),
    commands=("python -m auditdm_jax report --config=configs/scenes.py --workdir=runs/easy",),
    versions={"jax": "0.10.2", "python": "3.11"},
  )
