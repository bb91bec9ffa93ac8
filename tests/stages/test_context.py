# SPDX-License-Identifier: Apache-2.0
"""What a run refuses before it does anything."""

import importlib.util
import json
import pathlib
from types import SimpleNamespace

import jax
import numpy as np
from PIL import Image
import pytest

from auditdm_jax.core import machine, runtime
from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.core.config import UserError
from auditdm_jax.rectify import finetune
from auditdm_jax.stages import discover, loop, rectify, verify
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.examples import from_failures
from tests import heap

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def config():
  spec = importlib.util.spec_from_file_location("scenes", ROOT / "configs/scenes.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config()


def test_one_process_at_a_time_works_in_a_folder(config, tmp_path):
  with Context(config, tmp_path, "train"):
    with pytest.raises(UserError, match="another process is at work there"):
      with Context(config, tmp_path, "train"):
        pass
  with Context(config, tmp_path, "train"):
    pass
  stages = json.loads((tmp_path / "manifest.json").read_text())["stages"]
  assert stages["train"]["runs"] == 2 and stages["train"]["models"]["sibling"]


@pytest.mark.parametrize("role", ["", "target", "references", "sibling"])
def test_only_where_all_models_are_tiny_xla_gets_one_thread(config, tmp_path, monkeypatch, role):
  asked = []
  monkeypatch.setattr(runtime, "use_one_thread", lambda: asked.append(True))
  (tmp_path / "large").mkdir()
  with open(tmp_path / "large/model.safetensors", "wb") as f:
    f.truncate(9 << 20)
  if role:
    large = str(tmp_path / "large")
    config.models[role] = (*config.models[role], large) if role == "references" else large
  Context(config, tmp_path / "run", "train")
  assert bool(asked) == (not role)


def test_target_and_references_need_names_of_their_own(config, tmp_path):
  config.models.references = ("a/gemma", "b/gemma")
  with pytest.raises(UserError, match="a/gemma and b/gemma have one name, gemma"):
    Context(config, tmp_path, "train")


def test_styles_are_those_of_the_models_and_go_into_the_manifest(config, tmp_path):
  config.bank.styles = (("ref_gemma3", {"prefix": "", "name": "mine"}),)
  config.bank.max_new_tokens = 3
  with Context(config, tmp_path / "run", "train") as ctx:
    image = np.zeros((64, 64, 3), np.uint8)
    ctx.models.bank().answers([image], ["what color is the background"])
    assert ctx.spent()["answers/ref_gemma3"] == 1
  with Context(config, tmp_path / "run", "verify") as ctx:
    ctx.models.bank().answers([image], ["what color is the circle"])
    assert ctx.spent()["answers/ref_gemma3"] == 2  # Of the stage before, and of this one so far.
    assert "seconds" not in ctx.spent()
  stage = json.loads((tmp_path / "run/manifest.json").read_text())["stages"]["train"]
  asked = {name: style["name"] for name, style in stage["styles"].items()}
  assert asked == {"target_easy": "plain", "ref_paligemma2": "plain", "ref_gemma3": "mine"}
  assert stage["styles"]["ref_gemma3"]["take"] == "short"
  assert stage["cost"]["answers/ref_gemma3"] == 1
  config.bank.styles = (("gemma3", "chat"),)
  with pytest.raises(
    UserError, match=r"bank.styles: no model 'gemma3' \(did you mean 'ref_gemma3'"
  ):
    Context(config, tmp_path / "other", "train")


def test_a_key_that_nobody_reads_is_refused_at_once(config, tmp_path):
  with config.unlocked():
    config.discover.probse = 3
  with pytest.raises(UserError, match=r"config.discover.probse: .*did you mean 'probes'"):
    Context(config, tmp_path, "train")


@pytest.mark.parametrize(
  ("run", "first"),
  [
    (discover.run, "train"),
    (verify.run, "discover"),
    (from_failures, "verify"),
  ],
)
def test_a_stage_without_the_one_before_says_which(config, tmp_path, run, first):
  with Context(config, tmp_path, "stage") as ctx, pytest.raises(UserError) as e:
    run(ctx)
  assert f"run the stage {first} first" in str(e.value)


def test_micro_batches_that_do_not_divide_are_refused_before_the_loop_begins(
  config, tmp_path, monkeypatch
):
  monkeypatch.setattr(mesh_lib, "row_shards", lambda mesh: 3)
  monkeypatch.setattr(loop.preflight, "run", lambda ctx: pytest.fail("the loop has begun"))
  with Context(config, tmp_path, "loop") as ctx:
    monkeypatch.setattr(type(ctx.models), "mesh", "three devices")
    with pytest.raises(UserError, match="micro_rows=8: must be a multiple of the 3 devices"):
      loop.run(ctx)


def test_the_repair_may_have_a_mesh_of_its_own(config, tmp_path, monkeypatch):
  monkeypatch.setattr(loop.preflight, "run", lambda ctx: pytest.fail("the loop has begun"))
  given = []
  monkeypatch.setattr(
    finetune,
    "finetune",
    lambda *args, mesh, **how: given.append(mesh) or SimpleNamespace(params={}),
  )
  monkeypatch.setattr(rectify, "_save", lambda *args: None)
  mesh = mesh_lib.make_mesh({"data": 1}, devices=jax.devices()[:1])
  for shape, axes in (({}, ("data",)), ({"fsdp": -1, "tensor": 1}, ("fsdp", "tensor"))):
    config.repair_mesh = shape
    with Context(config, tmp_path / str(len(shape)), "loop") as ctx:
      monkeypatch.setattr(type(ctx.models), "mesh", mesh)
      assert ctx.models.repair_mesh.axis_names == axes
      assert ctx.models.rollout_mesh is mesh
      rectify.repair(ctx, "repaired", [], [])
  assert [used.axis_names for used in given] == [("data",), ("fsdp", "tensor")]
  config.repair_mesh = {"fsdp": 3}
  with Context(config, tmp_path / "wrong", "loop") as ctx:
    with pytest.raises(UserError, match="'fsdp': 3.* does not use up the 1 devices"):
      loop.run(ctx)


def test_a_replay_without_questions_is_refused_before_the_loop_begins(config, tmp_path):
  (tmp_path / "data/own/train").mkdir(parents=True)
  Image.new("RGB", (64, 64)).save(tmp_path / "data/own/train/a.png")
  config.pool.update(builder="", data_dir=str(tmp_path / "data"), dataset="own", images="train")
  with Context(config, tmp_path / "run", "loop") as ctx:
    with pytest.raises(UserError, match=r"replay=0\.\d+: no image of train has a question"):
      loop.run(ctx)
    assert not (tmp_path / "run/evaluate").exists()


def test_seconds_of_a_stage_that_is_ended_count(config, tmp_path):
  def ended():
    raise KeyboardInterrupt

  with Context(config, tmp_path, "loop") as ctx:
    clock = iter([10.0, 12.5, 20.0, 21.0])
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr("auditdm_jax.stages.context.time.perf_counter", lambda: next(clock))
      with pytest.raises(KeyboardInterrupt):
        ctx.stage("train", ended)
      assert ctx.stage("train", lambda: 7) == 7
    assert ctx.folder.seconds() == {"train": 3.5}


@heap.needs_glibc
def test_a_stage_leaves_no_memory_that_it_has_freed(config, tmp_path):
  with Context(config, tmp_path, "loop") as ctx:
    machine.trim_heap()
    before = heap.resident()
    kept = ctx.stage("train", heap.fragmented)
    assert kept and heap.resident() - before < heap.FREED / 2
