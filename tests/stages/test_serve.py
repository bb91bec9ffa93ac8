# SPDX-License-Identifier: Apache-2.0
"""`python -m auditdm_jax serve` in a process of its own, asked by OpenAI's client library."""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import openai
import pytest

from auditdm_jax import __main__ as main_lib
from auditdm_jax.core import runtime
from auditdm_jax.stages import serve
from auditdm_jax.vlm import load_vlm, save_vlm
from tests.serving import tiny
from tests.serving.tiny import IMAGES, QUESTIONS, user

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("models") / "tiny"
  save_vlm(path, tiny.make())
  return path


@contextlib.contextmanager
def serving(folder, *flags, devices=1, **env):
  """Runs the stage; yields the process and what it says when it is ready."""
  split = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
  process = subprocess.Popen(
    [sys.executable, "-m", "auditdm_jax", "serve", f"--model={folder}", "--port=0", *flags],
    cwd=ROOT,
    env=os.environ | {"XLA_FLAGS": split} | env,
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  try:
    line = process.stdout.readline()
    assert line, process.stderr.read()
    yield process, json.loads(line)
  finally:
    process.kill()
    process.communicate()


def ask(ready, question, *images, **how):
  asked = openai.OpenAI(base_url=ready["base_url"], api_key="none", max_retries=0)
  answer = asked.chat.completions.create(
    model=ready["model"], messages=[user(question, *images)], **how
  )
  return answer.choices[0].message.content


def test_clients_get_the_answers_of_the_folder(folder, tmp_path):
  images = [IMAGES[i % 3] for i in range(8)]
  want = load_vlm(folder).answer(images, QUESTIONS, max_new_tokens=8)
  cold = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}  # What is in it can be warned of.
  with serving(folder, "--max_tokens=8", "--name=mine", **cold) as (process, ready):
    assert ready["model"] == "mine" and ready["base_url"].startswith("http://127.0.0.1:")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
      got = list(pool.map(lambda q, i: ask(ready, q, i), QUESTIONS, images))
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0 and not err, err
  assert got == want and len(set(got)) > 2


def under_way(health):
  """How many requests wait, and how many the model is answering."""
  said = json.loads(urllib.request.urlopen(health).read())
  return said["queued"], said["running"]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_what_is_under_way(folder, signum, tmp_path):
  """The first question compiles a program: the signal comes meanwhile."""
  cold = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
  with serving(folder, "--max_tokens=64", **cold) as (process, ready):
    health = ready["base_url"].removesuffix("v1") + "health"
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
      asked = [pool.submit(ask, ready, q, IMAGES[0]) for q in QUESTIONS[:4]]
      left = done = 0
      while left + done < len(asked):
        time.sleep(0.01)
        done = sum(f.done() for f in asked)  # First, so that none counts twice.
        left = sum(under_way(health))
      assert left >= 1, "all were answered before the signal"
      process.send_signal(signum)
      assert all(f.result(60) for f in asked)
    process.communicate(timeout=30)
    assert process.returncode == 0
    with pytest.raises(openai.APIConnectionError):
      ask(ready, QUESTIONS[0])


def test_a_key_and_a_mesh(folder, tmp_path):
  key = tmp_path / "key"
  key.write_text("open sesame\n")
  flags = "--max_tokens=8", f"--key_file={key}", "--mesh=fsdp=-1", "--host=0.0.0.0"
  with serving(folder, *flags, devices=2) as (_, ready):
    with pytest.raises(openai.AuthenticationError):
      ask(ready, QUESTIONS[0])
    asked = openai.OpenAI(base_url=ready["base_url"], api_key="open sesame")
    answer = asked.chat.completions.create(model="tiny", messages=[user(QUESTIONS[0], IMAGES[0])])
  want = load_vlm(folder).answer([IMAGES[0]], QUESTIONS[:1], max_new_tokens=8)
  assert [answer.choices[0].message.content] == want


@pytest.fixture
def run(capsys, monkeypatch):
  """Runs the command line; returns the exit code, stdout and stderr."""
  monkeypatch.setattr(runtime, "setup", lambda: None)  # It is for a process of its own.

  def call(*flags):
    serve.FLAGS.unparse_flags()
    code = main_lib.run(["serve", *map(str, flags)])
    return code, *capsys.readouterr()

  return call


def test_mistakes_are_one_line(run, folder, tmp_path):
  (tmp_path / "empty").write_text("\n")
  (tmp_path / "two").write_text("one\ntwo\n")
  (tmp_path / "key").write_text("one")
  taken = socket.create_server(("127.0.0.1", 0))
  model, port = f"--model={folder}", "--port=0"
  for flags, message in (
    ([port], "--model"),
    ([f"--model={tmp_path}/nothing", port], "no such file or folder"),
    ([model, "--port=70000"], "--port"),
    ([model, f"--port={taken.getsockname()[1]}"], "Address already in use"),
    (
      [model, port, "--host=256.1.1.1", f"--key_file={tmp_path}/key"],
      "--host=256.1.1.1 --port=0: ",
    ),
    ([model, port, "--host=0.0.0.0"], "others can reach it, so it needs --key_file"),
    ([model, port, f"--key_file={tmp_path}/none"], "No such file"),
    ([model, port, f"--key_file={tmp_path}/empty"], "a key is one line of printable ASCII"),
    ([model, port, f"--key_file={tmp_path}/two"], "a key is one line of printable ASCII"),
    ([model, port, "--mesh=fsdp"], "--mesh=fsdp: written as axes and sizes"),
    ([model, port, "--mesh=fsdp=7"], "does not use up the"),
    ([model, port, "--max_tokens=0"], "--max_tokens"),
    ([model, port, "more"], "not a flag: more"),
  ):
    code, out, err = run(*flags)
    assert code == 2 and not out and message in err, (flags, err)
    assert err.startswith("auditdm_jax: ") and len(err.splitlines()) == 1, err
  taken.close()


def test_a_model_that_cannot_be_asked_is_found_out_before_it_is_served(run, tmp_path):
  vlm = tiny.make()
  save_vlm(tmp_path / "m", vlm)
  config = json.loads((tmp_path / "m/config.json").read_text())
  (tmp_path / "m/config.json").write_text(json.dumps(config | {"template": "<bos>{text"}))
  code, out, err = run(f"--model={tmp_path}/m", "--port=0")
  assert code == 2 and not out and "template" in err


def test_help(run):
  code, out, _ = run("--help")
  assert code == 0 and "--max_queue" in out and "serve: answers over HTTP" in out
