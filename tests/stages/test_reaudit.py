# SPDX-License-Identifier: Apache-2.0
"""What a repair changed over the modes of all rounds, and which earlier modes later ones are."""

import types

import pytest

from auditdm_jax.audit.attempt import Attempt
from auditdm_jax.audit.compare import CompareConfig
from auditdm_jax.audit.judge import Judge
from auditdm_jax.audit.looks import Gallery, LooksConfig
from auditdm_jax.audit.probe import Probe, Verdict
from auditdm_jax.audit.skills import Seeds, Skill
from auditdm_jax.audit.taxonomy import discover_modes
from auditdm_jax.stages import asking, fresh, reaudit, trace
from auditdm_jax.stages.results import Verified
from auditdm_jax.stages.rounds import AuditRound
from auditdm_jax.stages.run import RunFolder
from auditdm_jax.stages.sections import FreshConfig

SEEDS = Seeds((Skill("colour", "The colour of a thing.", ("what color is the cup",)),))
THINGS = ("umbrella", "hat", "cup", "dog", "car")


def _fails(*things):
  """A target that answers wrongly about these things."""
  return lambda question: "red" if question.rpartition(" ")[2] in things else "blue"


def _attempts(says, *, start, images=120):
  attempts = []
  for i in range(start, start + images):
    for thing in THINGS:
      question = f"what color is the {thing}"
      probe, said = Probe.make(f"i{i}", question), says(question)
      verdict = Verdict(
        probe_id=probe.probe_id,
        answers={"t": said, "r": "blue"},
        target="t",
        references=("r",),
        consensus="blue",
        agree=True,
        disagreement=said != "blue",
        reason="disagreement" if said != "blue" else "agreement",
      )
      attempts.append(Attempt(probe=probe, verdict=verdict))
  return attempts


class Bank:
  """A repaired target, which is asked alone."""

  target = "repaired"

  def __init__(self, says):
    self._says, self.asked = says, 0

  def answers(self, images, questions, *, image_ids, models):
    assert models == [self.target] and len(image_ids) == len(questions)
    self.asked += len(questions)
    return {self.target: [self._says(q) for q in questions]}


def _round(path, number, says):
  """The folder of a round whose target answers by `says`; its modes are named and verified."""
  folder = RunFolder(AuditRound(number, path).folder, config_hash="x")
  found = _attempts(says, start=1000 * number)
  folder.append_batch("discover", 0, found)
  taxonomy = discover_modes(found, SEEDS)
  folder.append_batch(asking.FRESH, 0, _attempts(says, start=1000 * number + 500))
  folder.finish("verify", Verified(funnel={}, taxonomy=taxonomy, modes=()))
  return folder


def _context(path, number, folders, before=None):
  models = types.SimpleNamespace(
    load=lambda path: types.SimpleNamespace(name="repaired"), bank=lambda target: Bank(before)
  )
  return types.SimpleNamespace(
    folder=folders[number - 1],
    earlier=lambda: folders[: number - 1],
    round=AuditRound(number, path),
    written=types.SimpleNamespace(models=types.SimpleNamespace(target="t")),
    models=models,
    images=None,
    judge=Judge(),
    gallery=Gallery({}.__getitem__, config=LooksConfig(limit=0)),
    settings=types.SimpleNamespace(
      rounds=types.SimpleNamespace(compare=CompareConfig()),
      taxonomy=types.SimpleNamespace(fresh=FreshConfig()),
    ),
  )


def _ledger(ctx, folder, says, number):
  bank = Bank(says)
  changes, rest, asked = reaudit.ledger(
    ctx, folder, folder.done("verify", Verified), bank, number=number
  )
  assert asked == bank.asked
  return {m.name.split()[-1]: (m.status, m.round) for m in changes}, rest


def test_each_mode_is_compared_with_the_target_of_its_own_round(tmp_path):
  folders = [
    _round(tmp_path, 1, _fails("umbrella", "hat")),
    _round(tmp_path, 2, _fails("cup")),
  ]
  ctx = _context(tmp_path, 2, folders)
  # The second repair mends the cup, keeps the umbrella, and brings the hat back.
  after = _fails("hat")
  found, rest = _ledger(ctx, folders[0], after, 1)
  assert found["umbrella"] == ("fixed", 1) and found["hat"][0] in ("unchanged", "unsure")
  assert (rest.before.k, rest.after.k) == (0, 0) and rest.before.n > 100
  found, rest = _ledger(ctx, folders[1], after, 2)
  assert found == {"cup": ("fixed", 2)}
  assert rest.before.k == 0 < rest.after.k, "what a repair breaks is outside the round's modes"


def test_without_modes_nobody_is_asked(tmp_path):
  folder = _round(tmp_path, 1, _fails())
  ctx = _context(tmp_path, 1, [folder])
  assert _ledger(ctx, folder, _fails(), 1) == ({}, None)


@pytest.mark.parametrize(
  ("before", "relation"), [(_fails(), "new"), (_fails("cup"), "missed")], ids=["new", "missed"]
)
def test_modes_are_traced_to_all_rounds_before(tmp_path, before, relation):
  folders = [
    _round(tmp_path, 1, _fails("umbrella")),
    _round(tmp_path, 2, _fails("hat")),
    _round(tmp_path, 3, _fails("umbrella", "hat", "cup")),
  ]
  ctx = _context(tmp_path, 3, folders, before)
  found = trace.traced(ctx, folders[2].done("verify", Verified))
  relations = {m.name.split()[-1]: m.relation for m in found}
  assert relations == {"umbrella": "same", "hat": "same", "cup": relation}
  assert all(m.status == "confirmed" for m in found)
  parents = {m.name.split()[-1]: [p.split()[-1] for p in m.parents] for m in found}
  assert parents == {"umbrella": ["umbrella"], "hat": ["hat"], "cup": []}


def test_fresh_probes_of_a_round_are_read_as_they_were_asked(tmp_path):
  folder = _round(tmp_path, 1, _fails("umbrella"))
  folder.append_batch(asking.FRESH, 1, _attempts(_fails("umbrella"), start=1700, images=2))
  taxonomy = folder.done("verify", Verified).taxonomy
  kept = fresh.kept(_context(tmp_path, 1, [folder]), folder, taxonomy)
  assert [p.for_all for p in kept.probes] == [True] * 600 + [False] * 10
  assert sum(m is not None for m in kept.matched) == 122
