# SPDX-License-Identifier: Apache-2.0
"""Fresh probes: what is asked for all, what for a mode that lacks some, and a run that is cut."""

import types

import pytest

from auditdm_jax.audit.attempt import Attempt
from auditdm_jax.audit.looks import Gallery, LooksConfig
from auditdm_jax.audit.probe import Probe, Verdict
from auditdm_jax.audit.skills import Seeds, Skill
from auditdm_jax.audit.taxonomy import discover_modes
from auditdm_jax.stages import fresh
from auditdm_jax.stages.run import RunFolder
from auditdm_jax.stages.sections import FreshConfig

SEEDS = Seeds((Skill("colour", "The colour of a thing.", ("what color is the cup",)),))


class Pool:
  """Ten questions about each of 400 images, of which one in fifty is about an umbrella."""

  split = "fresh"

  def __len__(self):
    return 400

  def image_id(self, i):
    return f"i{i}"

  def asked(self):
    thing = lambda i, j: "umbrella" if (i + 5 * j) % 50 == 0 else f"thing {j}"  # noqa: E731
    return [(i, f"what color is the {thing(i, j)}") for i in range(400) for j in range(10)]


class Bank:
  """The target fails on umbrellas; every tenth question has no consensus."""

  def __init__(self):
    self.asked: list[str] = []

  def verdicts(self, images, questions, *, image_ids, cascade, progress):
    assert cascade is False
    self.asked += questions
    return [_verdict(q, i) for q, i in zip(questions, image_ids, strict=True)]


def _verdict(question: str, image_id: str) -> Verdict:
  known = int(image_id[1:]) % 10 > 0
  failed = known and "umbrella" in question
  return Verdict(
    probe_id="",
    answers={"t": "red" if failed else "blue", "r": "blue"},
    target="t",
    references=("r",),
    consensus="blue" if known else None,
    agree=known,
    disagreement=failed,
    reason="disagreement" if failed else "agreement" if known else "no consensus",
  )


@pytest.fixture
def taxonomy():
  attempts = [
    Attempt(probe=Probe.make(f"d{i}", q), verdict=_verdict(q, f"i{i}"))
    for i in range(200)
    for q in ("what color is the umbrella", "what color is the cup", "what color is the dog")
  ]
  found = discover_modes(attempts, SEEDS)
  assert [m.terms for m in found.modes] == [("q:umbrella",)]
  return found


def _context(path, **config):
  settings = types.SimpleNamespace(
    seed=0,
    pool=types.SimpleNamespace(fresh="fresh"),
    optim=types.SimpleNamespace(steps=0),
    taxonomy=types.SimpleNamespace(fresh=FreshConfig(**{"rest": 500} | config)),
  )
  bank = Bank()
  return types.SimpleNamespace(
    folder=RunFolder(path, config_hash="x"),
    settings=settings,
    images=None,
    gallery=Gallery({}.__getitem__, config=LooksConfig(limit=0)),
    pool=lambda role: Pool(),
    models=types.SimpleNamespace(bank=lambda: bank),
  )


def _draw(ctx, taxonomy, questions=None):
  return fresh.draw(ctx, taxonomy, bank=ctx.models.bank(), questions=questions or {})


def test_only_what_a_mode_lacks_is_asked_beyond_the_rest(tmp_path, taxonomy):
  ctx = _context(tmp_path)
  bank = ctx.models.bank()
  found = _draw(ctx, taxonomy)
  rest, more = bank.asked[:500], bank.asked[500:]
  assert len({*rest}) > 5 and {*more} == {"what color is the umbrella"}
  draw = found.draw
  assert (draw.proposer, draw.for_all) == ("questions of the data set", 500)
  assert draw.for_modes == len(more) and draw.looked_at == 3500
  (test,) = found.tests(ctx, taxonomy)
  assert test.status == "confirmed" and test.fresh.rate == 1.0 and test.base.rate == 0.0
  assert test.fresh.n == 40 and 0.2 < test.consensus.rate < 0.8
  assert [a.probe.probe_id for a in found.attempts] == [p.probe_id for p in found.probes]


def test_a_mode_with_enough_probes_costs_nothing_more(tmp_path, taxonomy):
  ctx = _context(tmp_path, half_width=0.4)
  assert _draw(ctx, taxonomy).draw.for_modes == 0


def test_the_budget_bounds_what_is_asked(tmp_path, taxonomy):
  ctx = _context(tmp_path, asks=7)
  found = _draw(ctx, taxonomy)
  assert found.draw.for_modes == 0, "the mode would take more than it can have"
  whole = _context(tmp_path / "w")
  needed = _draw(whole, taxonomy).draw.for_modes
  ctx = _context(tmp_path / "a", asks=1000)
  assert 7 < _draw(ctx, taxonomy).draw.for_modes == needed < 1000
  ctx = _context(tmp_path / "b", draws=1000)
  assert _draw(ctx, taxonomy).draw.looked_at == 1000


def test_where_a_proposer_has_no_more_the_questions_of_finds_are_asked(tmp_path, taxonomy):
  (mode,) = taxonomy.modes
  texts = {mode.mode_id: ["what color is the umbrella", "what color is that umbrella"]}
  config = {"draws": 0, "min_n": 12}
  few, ctx = _context(tmp_path / "few", **config), _context(tmp_path / "more", **config)
  (little,) = _draw(few, taxonomy).tests(few, taxonomy)
  bank, planned = ctx.models.bank(), ctx.settings.taxonomy.fresh.planned
  found = _draw(ctx, taxonomy, texts)
  (test,) = found.tests(ctx, taxonomy)
  assert little.fresh.n < 12 and (little.status, little.needs) == (
    "too few",
    planned - little.fresh.n,
  )
  assert 24 <= test.fresh.n <= planned and test.status == "confirmed"
  assert {*bank.asked[500:]} == set(texts[mode.mode_id]) and test.images > 20
  assert found.draw.of_finds == found.draw.for_modes, "the data set may be looked at no further"
  assert found.draw.for_modes == len(bank.asked) - 500 <= found.draw.looked_at
  assert fresh.kept(ctx, ctx.folder, taxonomy).probes == found.probes, "a later stage has them all"
  (path,) = (tmp_path / "more/fresh").glob("*.jsonl")
  lines = path.read_text().splitlines(keepends=True)
  for kept in (500, len(bank.asked) - 40, len(bank.asked)):  # Killed before, amid and after them.
    (tmp_path / f"{kept}/fresh").mkdir(parents=True)
    (tmp_path / f"{kept}/fresh" / path.name).write_text("".join(lines[:kept]))
    cut = _context(tmp_path / str(kept), **config)
    assert _draw(cut, taxonomy, texts) == found
    assert len(cut.models.bank().asked) <= len(bank.asked) - 500


def test_a_fresh_split_about_which_nobody_asks_anything_confirms_nothing(
  tmp_path, taxonomy, monkeypatch
):
  monkeypatch.setattr(Pool, "asked", lambda self: [])
  ctx = _context(tmp_path)
  ctx.settings.taxonomy.fresh = FreshConfig(proposer="auditor", draws=0)
  monkeypatch.setattr(fresh.asking, "fresh_attempts", lambda ctx, bank: [])
  monkeypatch.setattr(fresh, "_auditor", lambda ctx, bank: iter(()))
  found = _draw(ctx, taxonomy)
  assert found.attempts == () and [t.status for t in found.tests(ctx, taxonomy)] == ["too few"]


def test_a_run_that_is_cut_goes_on_where_it_was(tmp_path, taxonomy):
  whole = _context(tmp_path / "a")
  found = _draw(whole, taxonomy)
  (path,) = (tmp_path / "a/fresh").glob("*.jsonl")
  lines = path.read_text().splitlines(keepends=True)
  (tmp_path / "b/fresh").mkdir(parents=True)
  (tmp_path / "b/fresh" / path.name).write_text("".join(lines[:520]) + lines[520][:40])
  cut = _context(tmp_path / "b")
  assert _draw(cut, taxonomy) == found
  assert 0 < len(cut.models.bank().asked) < len(whole.models.bank().asked) - 400
  again = _context(tmp_path / "a")
  assert _draw(again, taxonomy) == found
  assert not again.models.bank().asked


def test_without_modes_or_a_fresh_split_nobody_is_asked(tmp_path, taxonomy):
  ctx = _context(tmp_path)
  none = discover_modes([], SEEDS)
  assert _draw(ctx, none).draw.proposer == "nobody"
  ctx.settings.pool.fresh = ""
  found = _draw(ctx, taxonomy)
  assert found.draw.proposer == "nobody" and not ctx.models.bank().asked
  assert [t.status for t in found.tests(ctx, taxonomy)] == ["too few"]
