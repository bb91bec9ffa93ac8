# SPDX-License-Identifier: Apache-2.0
"""The answer command: what it prints, and what it says about mistakes."""

import json
import pathlib

import numpy as np
from PIL import Image
import pytest

from auditdm_jax import __main__ as main_lib
from auditdm_jax.core import runtime
from auditdm_jax.core.config import UserError
from auditdm_jax.stages import answer
from auditdm_jax.vlm import load_vlm

ROOT = pathlib.Path(__file__).parents[2]
MODEL = ROOT / "data/scenes/weights/target_easy"
QUESTION = "what color is the circle?"


@pytest.fixture
def picture(tmp_path):
  """A red disc on a dark ground."""
  x, y = np.meshgrid(np.arange(64), np.arange(64))
  image = np.full((64, 64, 3), 30, np.uint8)
  image[(x - 30) ** 2 + (y - 34) ** 2 < 200] = (220, 30, 30)
  path = tmp_path / "disc.png"
  Image.fromarray(image).save(path)
  return path


@pytest.fixture
def run(capsys, monkeypatch):
  """Runs the command line; returns the exit code, stdout and stderr."""
  monkeypatch.setattr(runtime, "setup", lambda: None)  # It is for a process of its own.

  def call(*flags):
    answer.FLAGS.unparse_flags()
    code = main_lib.run(["answer", *map(str, flags)])
    return code, *capsys.readouterr()

  return call


def test_one_answer_is_printed_as_it_is(run, picture):
  ask = ("--model", MODEL, "--image", picture, "--prompt", QUESTION, "--max_new_tokens=3")
  want = load_vlm(MODEL).answer([picture], [QUESTION], max_new_tokens=3)
  assert run(*ask) == (0, f"{want[0]}\n", "")
  assert want[0]


def test_several_answers_are_lines_of_json(run, picture):
  flags = [f"--image={picture}", f"--prompt={QUESTION}", "--prompt=is there a circle?"]
  code, out, _ = run(f"--model={MODEL}", *flags, "--temperature=1", "--seed=3")
  rows = [json.loads(line) for line in out.splitlines()]
  assert code == 0 and [r["prompt"] for r in rows] == [QUESTION, "is there a circle?"]
  assert all(r["image"] == str(picture) and r["answer"] for r in rows)


def test_pairs():
  assert answer.pair([], ["p", "q"]) == ([None, None], ["p", "q"])
  assert answer.pair(["a", "b"], ["p"]) == (["a", "b"], ["p", "p"])
  assert answer.pair(["a"], ["p", "q"]) == (["a", "a"], ["p", "q"])
  assert answer.pair(["a", "b"], ["p", "q"]) == (["a", "b"], ["p", "q"])
  with pytest.raises(UserError, match="2 --image for 3 --prompt"):
    answer.pair(["a", "b"], ["p", "q", "r"])


def test_mistakes_are_one_line(run, picture, tmp_path):
  (tmp_path / "empty").mkdir()
  (tmp_path / "torn.png").write_bytes(picture.read_bytes()[:100])
  model, image, prompt = f"--model={MODEL}", f"--image={picture}", f"--prompt={QUESTION}"
  for flags, message in (
    ([image, prompt], "--model"),
    ([model, image], "--prompt"),
    ([model, image, prompt, "--seed=4294967296"], "seed 4294967296: expected"),
    ([model, image, prompt, "--temperature=nan"], "temperature nan is negative or not finite"),
    ([model, image, "--prompt=caf\udce9"], "text that is not UTF-8: 'caf\\udce9'"),
    ([model, image, prompt, "--max_new_tokens=0"], "--max_new_tokens"),
    ([model, image, prompt, "--workdir=x"], "workdir"),
    ([model, "--image=no.png", prompt], "--image=no.png: no such file"),
    ([model, f"--image={tmp_path}/torn.png", prompt], "torn.png) cannot be read"),
    ([f"--model={tmp_path}/empty", image, prompt], "there is no config.json"),
    ([f"--model={tmp_path}/nothing", image, prompt], "no such file or folder"),
    ([f"--model={'x' * 300}", image, prompt], "File name too long: 'xxx"),
    ([model, f"--image={'x' * 300}", prompt], "File name too long: 'xxx"),
  ):
    code, out, err = run(*flags)
    assert code == 2 and not out and message in err, (flags, err)
    assert err.startswith("auditdm_jax: ") and len(err.splitlines()) == 1, err


def test_help(run):
  code, out, _ = run("--help")
  assert code == 0 and "--max_new_tokens" in out and "answer: asks a model" in out
