# SPDX-License-Identifier: Apache-2.0
"""The paper's configs through the whole loop, with small models, on a folder of images."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

from auditdm_jax.core.config import build
from auditdm_jax.stages.sections import AuditConfig
from tests.stages.folders import images_of_scenes

ROOT = pathlib.Path(__file__).parents[2]
WEIGHTS = "data/scenes/weights"

# What it takes to go from the models of the paper to ones that fit here.
CONFIG = """
import importlib.util


def get_config():
  spec = importlib.util.spec_from_file_location("paper", {path!r})
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  c = module.get_config("on=h200")
  c.models.update(
    auditor="{weights}/auditor", target="{weights}/target_easy", dtype="float32",
    references=("{weights}/ref_paligemma2", "{weights}/ref_gemma3"),
  )
  c.pool.update(data_dir={data!r}, dataset="own")
  c.images.update(backend="scenes", address="", width=64, height=64)
  c.rollout.task = dict(question="ask", caption="describe", instruction="edit")
  c.rollout.max_new_tokens = dict(question=11, caption=24, instruction=14)
  c.optim.steps, c.checkpoints.harvest = 2, (1,)
  c.discover.update(probes=256, batch=128, search_probes=64)
  c.verify.limit = 20
  c.rectify.recipe.update(epochs=1, batch_size=16, micro_rows=8)
  c.rectify.update(length=30, suffix=3)
  c.rectify.curate.size = 16
  c.rounds.steps = 1
  return c
"""


@pytest.mark.parametrize(
  "name",
  [
    "paligemma2",
    "paligemma2:on=v5e-64,references=28b",
    "paligemma2:on=h200",
    "gemma3",
    "gemma3:on=v5p-8,references=27b",
    "scenes",
    "scenes:target=rare,reward=plain",
    "scenes:images=diffusion",
    "scenes:strategy=both,rounds=3",
    "scenes:strategy=all",
    "ablations/grpo:group=4",
  ],
)
def test_every_config_has_all_sections(name):
  name, _, arg = name.partition(":")
  path = ROOT / "configs" / f"{name}.py"
  spec = importlib.util.spec_from_file_location("config", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  build(AuditConfig, module.get_config(arg), name="config")


@pytest.mark.parametrize("paper", ["paligemma2", pytest.param("gemma3", marks=pytest.mark.slow)])
def test_the_papers_config_runs_the_loop_on_a_folder_of_images(tmp_path, paper):
  """Models take turns and answer in a cascade, no oracle, no replay, epochs in place of steps."""
  for seed, (split, images) in enumerate({"train": 60, "heldout": 20, "fresh": 30}.items()):
    images_of_scenes(tmp_path / "data/own" / split, images=images, seed=seed)
  config = tmp_path / "config.py"
  path = str(ROOT / f"configs/{paper}.py")
  config.write_text(CONFIG.format(path=path, weights=WEIGHTS, data=str(tmp_path / "data")))
  workdir = tmp_path / "run"
  command = [sys.executable, "-m", "auditdm_jax", "loop", f"--config={config}"]
  done = subprocess.run(
    [*command, f"--workdir={workdir}"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=1200,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  summary = json.loads((workdir / "summary.json").read_text())
  assert summary["queries"]["grpo"] == 2 * 256 and summary["queries"]["discover"] == 256
  assert summary["precision"] is None and summary["rectify"]["repaired"]["all"]["n"] == 60
  # GRPO asks in a cascade; a control is trained on what the target knew as well, so all answer.
  completions = (workdir / "records/train/completions-0.jsonl").read_text()
  control = (workdir / "control/attempts-0.jsonl").read_text()
  assert '"skipped"' in completions and '"skipped"' not in control and '"agreement"' in control
  assert summary["rectify"]["control_random"]["examples"] > 0
  manifest = json.loads((workdir / "manifest.json").read_text())["stages"]["loop"]
  assert manifest["cost"]["answers/target_easy"] > 512 and manifest["cost"]["seconds"] > 0
  assert "target_easy" in (workdir / "report/index.html").read_text()
