# SPDX-License-Identifier: Apache-2.0
"""What a run is checked for before it begins: a line for each cause, and none for a good one."""

import json
import os
import pathlib
import runpy
import shutil
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from auditdm_jax.core.config import UserError
from auditdm_jax.stages import doctor, preflight
from auditdm_jax.stages.context import Context
from auditdm_jax.text import styles
from tests.stages.folders import images_of_scenes

ROOT = pathlib.Path(__file__).parents[2]
WEIGHTS = ROOT / "data/scenes/weights"
QUESTIONS = 36
# Words that answer questions, in kinds: one that is taken for the next of its kind is always wrong.
KINDS = (
  "black blue brown cyan gray green orange purple red white yellow",
  "zero one two three four five six seven eight nine none",
  "yes no",
  "small big",
  "circle cross diamond ring square triangle dial gauge",
  "north northeast east southeast south southwest west northwest",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
  """A folder of images of scenes at data/own, and of models at weights."""
  folder = tmp_path_factory.mktemp("home")
  images_of_scenes(folder / "data/own/train", images=12, seed=0)
  shutil.copytree(WEIGHTS / "siglip", folder / "weights/siglip")
  return folder


def config_of(home, arg="", **models):
  config = runpy.run_path(str(ROOT / "configs/scenes.py"))["get_config"](arg)
  config.models.update(sibling="", **models)
  config.pool.update(builder="", data_dir=str(home / "data"), dataset="own", images="train")
  config.pool.update(heldout="train", fresh="")
  config.rollout = config.rollout.to_dict() | {"prompts": {"question": 4}}  # No image is made.
  config.preflight = {"questions": QUESTIONS}
  return config


def copied(home, source, name):
  """A copy of a model's folder, next to the tower that they share."""
  folder = home / "weights" / name
  shutil.copytree(WEIGHTS / source, folder)
  return folder


def with_nan(home, source, name):
  folder = copied(home, source, name)
  tensors = safetensors.numpy.load_file(folder / "model.safetensors")
  damaged = next(key for key in sorted(tensors) if "attn" in key)
  tensors[damaged] = np.full_like(tensors[damaged], np.nan)
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")
  return str(folder), damaged


def with_wrong_words(home, source, name):
  """A model whose tokenizer takes each answer for another one."""
  folder = copied(home, source, name)
  tokenizer = json.loads((folder / "tokenizer.json").read_text())
  vocab = tokenizer["model"]["vocab"]
  for words in map(str.split, KINDS):
    ids = [vocab[word] for word in words]
    vocab |= dict(zip(words, ids[1:] + ids[:1], strict=True))
  tokenizer["model"]["vocab"] = vocab
  (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
  return str(folder)


def cause_of(config, workdir):
  """The one line that stops a run."""
  with Context(config, workdir, "train") as ctx, pytest.raises(UserError) as error:
    preflight.run(ctx)
  assert not (workdir / "preflight/done.json").exists()
  line = str(error.value)
  assert "\n" not in line, line
  return line


def test_a_good_ensemble_passes_once_and_is_not_asked_again(home, tmp_path, monkeypatch, capsys):
  config = config_of(home)
  with Context(config, tmp_path, "train") as ctx:
    found = preflight.run(ctx)
  assert found.ensemble.consensus.n == QUESTIONS and found.ensemble.consensus.value > 0.5
  assert found.warnings == () and "warning" not in capsys.readouterr().out
  assert (tmp_path / "preflight/done.json").exists()
  monkeypatch.setattr(preflight, "check", lambda ctx: pytest.fail("it is asked again"))
  with Context(config, tmp_path, "train") as ctx:
    assert preflight.run(ctx) == found


def test_another_config_is_checked_again_and_none_where_the_config_wants_none(home, tmp_path):
  config = config_of(home)
  with Context(config, tmp_path, "train") as ctx:
    first = preflight.run(ctx)
  config.preflight.questions = QUESTIONS // 2
  with Context(config, tmp_path, "train") as ctx:
    assert preflight.run(ctx).ensemble.consensus.n == QUESTIONS // 2 != first.ensemble.consensus.n
  config.preflight.enabled = False
  with Context(config, tmp_path, "train") as ctx:
    assert preflight.run(ctx) is None


def test_a_target_that_gives_nan_is_named(home, tmp_path):
  target, _ = with_nan(home, "target_easy", "nan_target")
  line = cause_of(config_of(home, target=target), tmp_path)
  assert "the target nan_target gives NaN or infinite logits after" in line


def test_a_target_with_other_gaps_than_its_world_is_named(home, tmp_path):
  line = cause_of(config_of(home, "gaps=seed:3"), tmp_path)
  assert "config.world.gaps='seed:3', and the target" in line
  assert "target_easy has the gaps 'easy'; name a target with these gaps" in line


@pytest.mark.parametrize("role", ["sibling", "verify"])
def test_a_model_that_is_asked_later_is_looked_at_now(home, tmp_path, role):
  path, damaged = with_nan(home, "sibling", f"nan_{role}")
  config = config_of(home)
  if role == "sibling":
    config.models.sibling = path
  else:
    config.verify.model = path
  line = cause_of(config, tmp_path)
  assert role in line and f"{path} has NaN or infinite weights in {damaged}" in line


@pytest.mark.parametrize("name", ["target", "references"])
def test_a_copy_is_told_by_its_weights(home, tmp_path, name):
  copy = copied(home, "ref_gemma3", f"copied_{name}")
  (copy / "tokenizer_config.json").write_text("{}")  # What is next to them makes no other model.
  ours = {"target": str(copy)}
  if name == "references":
    ours = {"references": tuple(map(str, (WEIGHTS / "ref_gemma3", copy)))}
  line = cause_of(config_of(home, **ours), tmp_path)
  if name == "target":
    assert "the target copied_target is a copy of the reference ref_gemma3" in line
  else:
    assert "the references ref_gemma3 and copied_references are copies of one model" in line
  assert "their weights are equal" in line


def test_references_that_never_agree_are_named(home, tmp_path):
  other = with_wrong_words(home, "ref_gemma3", "other")
  references = (str(WEIGHTS / "ref_paligemma2"), other)
  config = config_of(home, references=references)
  config.preflight.least_agreement = 0.25  # Of 36 questions about 12 images .2 would leave doubt.
  line = cause_of(config, tmp_path)
  assert "the references ref_paligemma2 and other agree about" in line
  assert "least_agreement=0.25" in line


def test_a_reference_that_talks_and_has_no_style_is_named(home, tmp_path):
  config = config_of(home, "talk=sentences")
  config.bank.styles = (("ref_gemma3", styles.PLAIN.name),)
  line = cause_of(config, tmp_path)
  assert "the reference ref_gemma3 answers in sentences" in line
  assert "config.bank.styles=(('ref_gemma3', 'chat'),)" in line


def test_a_target_that_talks_and_has_no_style_is_warned_of(home, tmp_path, capsys):
  config = config_of(home, "talk=sentences")
  config.bank.styles = (("target_easy", styles.PLAIN.name),)
  with Context(config, tmp_path, "train") as ctx:
    found = preflight.run(ctx)
    again = preflight.run(ctx)
  (warning,) = found.warnings
  assert "the target target_easy answers in sentences" in warning.cause and found == again
  assert f"warning: {warning}" in capsys.readouterr().out
  assert warning.cause in (tmp_path / "preflight/done.json").read_text()


@pytest.mark.parametrize("own", [False, True])
def test_an_image_service_that_is_not_there_is_one_line(home, tmp_path, own):
  config = config_of(home)
  config.rollout.prompts = {"generate": 4}
  config.images.update(address="" if own else "localhost:1", ready_s=0.3)
  line = cause_of(config, tmp_path)
  if own:
    assert line.startswith("config.images: the image service was not ready in 0.3 s")
    assert line.endswith(f"see {tmp_path / 'images.log'}")
  else:
    assert line.startswith("config.images: no image service at localhost:1 after 0.3 s")


def test_doctor_says_the_cause_with_exit_code_2(home, tmp_path):
  target, _ = with_nan(home, "target_easy", "sick")
  config = tmp_path / "config.py"
  made = config_of(home, target=target).to_dict()
  config.write_text(
    f"from ml_collections import ConfigDict\n\n\ndef get_config():\n  return ConfigDict({made!r})\n"
  )
  done = subprocess.run(
    [sys.executable, "-m", "auditdm_jax", "doctor", f"--config={config}"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
    env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
  )
  assert done.returncode == 2, done.stderr
  (line,) = [line for line in done.stderr.splitlines() if line.startswith("auditdm_jax: ")]
  assert "the target sick gives NaN" in line and "devices: " in done.stdout


def test_doctor_finds_nothing_wrong_and_needs_no_folder(home, capsys):
  assert doctor.main(config_of(home), None) == 0
  said = capsys.readouterr().out
  assert "the references agree" in said and said.endswith("nothing is wrong\n")
