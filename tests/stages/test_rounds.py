# SPDX-License-Identifier: Apache-2.0
"""Rounds: what the folder of one means, in which order the loop runs them, and when it stops."""

import contextlib
import importlib.util
import pathlib
import types

import jax
import pytest

from auditdm_jax.audit import rates
from auditdm_jax.audit.summary import LaterRound, ModeChange, Reaudited, TracedMode
from auditdm_jax.core import runtime
from auditdm_jax.core.config import UserError, build
from auditdm_jax.rectify.curate import TrainingExample
from auditdm_jax.stages import loop, rectify, summarise
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.examples import Chosen
from auditdm_jax.stages.results import RepairedModel, Repairs
from auditdm_jax.stages.rounds import AuditRound
from auditdm_jax.stages.run import RunFolder
from auditdm_jax.stages.sections import AuditConfig, RoundsConfig

ROOT = pathlib.Path(__file__).parents[2]


def _config(**changes):
  spec = importlib.util.spec_from_file_location("scenes", ROOT / "configs/scenes.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config("rounds=3")
  config.update_from_flattened_dict(changes)
  return config


def _settings(**changes) -> AuditConfig:
  return build(AuditConfig, _config(**changes), name="config")


def _run(path: pathlib.Path, *rounds: int) -> pathlib.Path:
  """A run whose rounds have repaired their targets."""
  path.mkdir(exist_ok=True)
  (path / "manifest.json").write_text('{"stages": {}}')
  for n in rounds:
    folder = AuditRound(n, path).folder / "rectify/repaired"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
  return path


# ------------------------------------------------------------------------- the folder of a round


def test_only_a_folder_of_rounds_in_a_run_is_a_later_round(tmp_path):
  assert AuditRound.of(tmp_path / "rounds/2").is_first, "there is no run around it"
  run = _run(tmp_path)
  for name in ("rounds/1", "rounds/x", "other/2"):
    assert AuditRound.of(run / name).is_first
  found = AuditRound.of(run / "rounds/3")
  assert (found.number, found.root, found.folder) == (3, run, run / "rounds/3")
  assert [r.folder for r in found.earlier()] == [run, run / "rounds/2"]


def test_a_round_audits_the_target_of_the_one_before_with_its_auditor(tmp_path):
  said = _settings(
    **{
      "bank.styles": (("target_easy", "plain"), ("ref_gemma3", "plain")),
      "bank.order": ("ref_gemma3", "target_easy", "ref_paligemma2"),
    }
  )
  run = _run(tmp_path, 1, 2)
  assert AuditRound(1, run).settings(said) is said
  second, third = (AuditRound(n, run).settings(said) for n in (2, 3))
  assert second.models.target == str(run / "rectify/repaired")
  assert second.models.auditor == str(run / "auditors/train/000150")
  assert third.models.target == str(run / "rounds/2/rectify/repaired")
  assert third.models.auditor == str(run / "rounds/2/auditors/train/000060")
  assert second.models.references == said.models.references
  assert (second.optim.steps, second.discover.probes) == (60, 0)
  # The repaired target is asked as the target was.
  assert dict(second.bank.styles).keys() == {"repaired", "ref_gemma3"}
  assert second.bank.order == ("ref_gemma3", "repaired", "ref_paligemma2")


def test_an_auditor_that_was_not_trained_is_the_one_before(tmp_path):
  run = _run(tmp_path, 1, 2)
  said = _settings(**{"optim.steps": 0, "rounds.steps": 0, "rounds.probes": 9})
  assert AuditRound(3, run).settings(said).models.auditor == said.models.auditor
  said = _settings(**{"rounds.steps": 0, "rounds.probes": 9})
  trained = AuditRound(3, run).settings(said).models.auditor
  assert trained == str(run / "auditors/train/000150"), "round 2 trained none"


def test_a_round_without_a_repaired_target_is_one_line(tmp_path):
  with pytest.raises(UserError, match="round 3 audits the target that round 2 repairs"):
    AuditRound(3, _run(tmp_path, 1)).settings(_settings())


def test_draws_of_rounds_have_names_of_their_own(tmp_path):
  first, second = AuditRound(1, tmp_path), AuditRound(2, tmp_path)
  assert (first.draws, second.draws) == ("train", "round2")
  assert first.walk("discover", 3) == ("discover", 3)
  assert second.walk("discover", 3) == ("round2", "discover", 3)


def test_rounds_share_the_lock_the_images_and_the_folder_of_the_benchmark(tmp_path):
  run = _run(tmp_path, 1)
  config = _config()
  with Context(config, run, "loop") as ctx:
    with pytest.raises(UserError, match="another process is at work there"):
      with Context(config, run / "rounds/2", "train"):
        pass
    # Without a look at models: these are loaded when they are asked for.
    ctx.models.references = {}
    ctx.models.reader = "the auditor of round 1"
    ctx.pool = types.SimpleNamespace()
    with ctx.opened(2) as own:
      assert own.folder.path == run / "rounds/2" and own.images is ctx.images
      assert own.judge is ctx.judge and own.pool is ctx.pool and own.world is ctx.world
      assert own.models.config.target == str(run / "rectify/repaired")
      assert [f.path for f in own.earlier()] == [run]
      assert own.models.reader is None, "it is opened anew: the auditor is another one"
    assert list(ctx.later()) == [2]
    with pytest.raises(KeyboardInterrupt), ctx.opened(2) as own:
      own.models.answers = lambda: {"answers/t": 3}
      raise KeyboardInterrupt
    ctx.folder.manifest.add_cost("loop", **{"answers/t": 4})
    assert ctx.spent()["answers/t"] == 7 and "seconds" not in ctx.spent()
  manifest = RunFolder(run / "rounds/2", config_hash="").manifest.read()["stages"]["loop"]
  assert manifest["models"]["target"] == str(run / "rectify/repaired")


def test_a_round_needs_something_to_ask():
  with pytest.raises(UserError, match="config.rounds.count=2: a later round asks nothing"):
    RoundsConfig(count=2)
  config = RoundsConfig(count=3, steps=1, repair_last=False)
  assert [config.repairs(n) for n in (1, 2, 3)] == [True, True, False]


# ------------------------------------------------------------------------------------ the loop


def _traced(number, *relations):
  modes = tuple(
    TracedMode(
      mode_id=f"m{i}",
      name=f"m{i}",
      definition="",
      relation=relation,
      status="confirmed" if relation not in ("not confirmed", "too few") else relation,
      parents=(),
      covered=rates.NOTHING,
      before=None,
      after=None,
      k=1,
      n=2,
    )
    for i, relation in enumerate(relations)
  )
  return LaterRound(number, rates.NOTHING, rates.NOTHING, {}, None, modes, 10)


class Loop:
  """The loop with stages that only write down that they ran.

  `finds` has the relations of the modes of each later round.
  """

  def __init__(self, monkeypatch, finds, *, repairs=True, enabled=True, **rounds):
    self.ran: list[tuple[int, str]] = []
    self.finds, self.repairs, self.enabled = finds, repairs, enabled
    self.config = RoundsConfig(**{"count": 4, "steps": 1} | rounds)
    for name in ("train", "discover", "verify", "reaudit", "preflight", "evaluate", "report"):
      monkeypatch.setattr(getattr(loop, name), "run", self._stage(name))
    for name in ("search", "random_control", "repair"):
      monkeypatch.setattr(loop, name, self._stage(name))
    monkeypatch.setattr(loop.trace, "run", self._stage("trace"))
    for stage in (loop.rectify, loop.rewording):
      monkeypatch.setattr(stage, "check", lambda ctx: None)

  def _stage(self, name):
    def run(ctx, *args):
      self.ran.append((ctx.round.number, name))
      if name == "trace":
        return _traced(ctx.round.number, *self.finds[ctx.round.number])
      if name == "repair":
        made = RepairedModel({}, 1)
        return Repairs({"repaired": made} if self.repairs else {"control_random": made})
      return types.SimpleNamespace(completions=0, queries=0)

    return run

  def context(self, number, path):
    ctx = types.SimpleNamespace(
      round=AuditRound(number, path),
      settings=types.SimpleNamespace(
        rounds=self.config, rectify=types.SimpleNamespace(bootstraps=False, enabled=self.enabled)
      ),
      models=types.SimpleNamespace(target_is_remote=False),
      folder=RunFolder(AuditRound(number, path).folder, config_hash="x"),
      stage=lambda name, body: body(),
      pool=lambda role: None,
    )
    ctx.opened = lambda n: contextlib.nullcontext(self.context(n, path))
    return ctx

  def of(self, number):
    return [name for n, name in self.ran if n == number]


AUDITED = ["train", "discover", "verify", "trace"]


def test_rounds_go_on_while_they_find_something_new(tmp_path, monkeypatch, capsys):
  found = Loop(monkeypatch, {2: ["new"], 3: ["same"], 4: ["new"]})
  loop.run(found.context(1, tmp_path))
  assert found.of(2) == [*AUDITED, "repair", "reaudit"]
  assert found.of(3) == [*AUDITED, "repair", "reaudit"], "a mode that is left is repaired again"
  assert not found.of(4)
  assert "round 3 found no mode at its budget that no earlier round had" in capsys.readouterr().out


def test_a_round_without_a_mode_repairs_nothing(tmp_path, monkeypatch):
  found = Loop(monkeypatch, {2: ["not confirmed", "too few"]})
  loop.run(found.context(1, tmp_path))
  assert found.of(2) == AUDITED and not found.of(3)


def test_what_an_earlier_round_missed_is_new_to_the_audit(tmp_path, monkeypatch):
  found = Loop(monkeypatch, {2: ["missed"], 3: []})
  loop.run(found.context(1, tmp_path))
  assert found.of(3) == AUDITED


def test_the_last_round_may_only_audit(tmp_path, monkeypatch):
  found = Loop(monkeypatch, {2: ["new"]}, count=2, repair_last=False)
  loop.run(found.context(1, tmp_path))
  assert found.of(1)[-3:] == ["repair", "reaudit", "report"] and found.of(2) == AUDITED


def test_one_round_is_repaired_and_nothing_follows(tmp_path, monkeypatch):
  found = Loop(monkeypatch, {}, count=1)
  loop.run(found.context(1, tmp_path))
  assert {n for n, _ in found.ran} == {1} and "repair" in found.of(1)


def test_with_repair_off_the_run_ends_in_its_report(tmp_path, monkeypatch):
  found = Loop(monkeypatch, {}, enabled=False)
  loop.run(found.context(1, tmp_path))
  assert {n for n, _ in found.ran} == {1}
  assert found.of(1)[-2:] == ["report", "report"] and "repair" not in found.of(1)


def test_without_a_repaired_target_there_is_no_other_round(tmp_path, monkeypatch):
  found = Loop(monkeypatch, {}, repairs=False)
  loop.run(found.context(1, tmp_path))
  assert not found.of(2) and "reaudit" not in found.of(1)


# ------------------------------------------------------------------------------------- a repair


def test_models_that_were_imported_do_not_stand_for_a_repair(tmp_path, monkeypatch):
  """They stay, and so does a repair that was tried."""
  ctx = types.SimpleNamespace(
    folder=RunFolder(tmp_path, config_hash=""),
    models=types.SimpleNamespace(target_is_remote=False),
    round=AuditRound(1, tmp_path),
  )
  theirs = RepairedModel({}, 1)
  ctx.folder.finish("rectify", Repairs({"theirs": theirs}, tried=False))
  tried = []
  monkeypatch.setattr(
    loop, "_arms", lambda ctx: tried.append(1) or {"repaired": Chosen({"probes": ()})}
  )
  for _ in range(2):
    found = loop.repair(ctx)
    assert found.tried and found.models == {"theirs": theirs}
  assert tried == [1]


def test_a_repair_trains_without_the_programs_of_what_was_before(tmp_path, monkeypatch):
  ctx = types.SimpleNamespace(
    folder=RunFolder(tmp_path, config_hash=""),
    models=types.SimpleNamespace(target_is_remote=False, answering=None),
    round=AuditRound(1, tmp_path),
  )
  asked, left = jax.jit(lambda x: x + 1), []

  def replay(ctx, examples):
    asked(1)
    return []

  def tune(ctx, name, examples, replay):
    left.append(runtime.programs(asked))
    raise rectify.RepairFailed("enough")

  arms = {name: Chosen({"probes": [_example(1, "a")]}) for name in ("repaired", "control_random")}
  monkeypatch.setattr(loop, "_arms", lambda ctx: arms)
  monkeypatch.setattr(loop.labelled, "label_precision", lambda ctx, examples: [])
  monkeypatch.setattr(rectify, "replay_examples", replay)
  monkeypatch.setattr(rectify, "repair", tune)
  assert set(loop.repair(ctx).failed) == set(arms)
  assert left == [0, 0]


def _example(i, group):
  return TrainingExample(image_id=f"i{i}", question="q", label="l", group=group)


def test_a_later_repair_has_the_examples_of_all_rounds_and_starts_where_the_first_did(
  tmp_path, monkeypatch
):
  first, second = (RunFolder(tmp_path / x, config_hash="") for x in "ab")
  first.append_examples("repaired", [_example(i, "a") for i in range(9)])
  first.append_examples("control_random", [_example(i, "c") for i in range(90, 190)])
  second.append_examples("repaired", [_example(i, "b") for i in range(12)])
  new = Chosen({"probes": [_example(3, "d"), _example(50, "d")]})
  monkeypatch.setattr(rectify, "by_strategy", lambda ctx, strategy: new)
  settings, third = _settings(), AuditRound(3, _run(tmp_path / "run", 1, 2))
  ctx = types.SimpleNamespace(settings=settings, earlier=lambda: [first, second], round=third)
  found = rectify.to_learn(ctx)
  assert [e.image_id for e in found.examples["earlier rounds"]] == [
    f"i{i}" for i in range(12) if i != 3
  ]
  assert [e.image_id for e in found.examples["probes"]] == ["i3", "i50"]
  ctx.round = AuditRound(1, tmp_path)
  assert rectify.to_learn(ctx) is new

  loaded = []

  class Stop(Exception):
    pass

  def load(folder):
    loaded.append(folder)
    raise Stop

  ctx = types.SimpleNamespace(
    settings=third.settings(settings),
    written=settings,
    round=third,
    models=types.SimpleNamespace(load=load, weights=None),
  )
  with pytest.raises(Stop):
    rectify.repair(ctx, "repaired", found.all, [])
  assert loaded == [settings.models.target]


def test_examples_of_a_killed_repair_are_written_once(tmp_path):
  folder = RunFolder(tmp_path, config_hash="")
  examples = [_example(i, "a") for i in range(5)]
  folder.append_examples("repaired", examples[:3])
  RunFolder(tmp_path, config_hash="").append_examples("repaired", examples)
  assert folder.examples("repaired") == examples


# -------------------------------------------------------------------------------------- the rows


def _change(mode_id, status, number):
  return ModeChange(mode_id, mode_id, status, rates.NOTHING, rates.NOTHING, (0.0, 0.0), 1.0, number)


def _done(confirmed, traced, reaudited):
  rows = [types.SimpleNamespace(mode_id=m, status="confirmed") for m in confirmed]
  verified = types.SimpleNamespace(fresh=None, modes=rows, labelled=None)
  return summarise.Round(verified, reaudited=reaudited, traced=traced)


def test_kept_are_modes_that_an_earlier_repair_mended_and_that_still_are():
  nothing = rates.NOTHING
  first = _done(
    ["a", "b", "c"],
    None,
    Reaudited(
      1, nothing, tuple(_change(m, s, 1) for m, s in zip("abc", ("fixed", "improved", "unsure")))
    ),
  )
  second = _done(
    ["d"],
    _traced(2, "new"),
    Reaudited(
      2,
      nothing,
      (
        *(_change(m, s, 1) for m, s in zip("abc", ("fixed", "unsure", "fixed"))),
        _change("d", "fixed", 2),
      ),
    ),
  )
  row = summarise.first_row(first, [], None, oracle=False)
  assert (row.repaired.k, row.repaired.n, row.kept) == (2, 3, None)
  (row,) = summarise.later_rows(first, [second])
  assert (row.round, row.new, row.repaired.k, row.repaired.n) == (2, 1, 1, 1)
  assert (row.kept.k, row.kept.n) == (1, 2), "a is kept, b is not, and c was not repaired then"
