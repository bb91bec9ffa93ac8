# SPDX-License-Identifier: Apache-2.0
"""A run that is killed asks nothing twice."""

import dataclasses
import json
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from auditdm_jax.endpoints.config import AskConfig
from auditdm_jax.endpoints.endpoint import Endpoint
from auditdm_jax.endpoints.failures import Reason
from tests.endpoints.fake_server import right_answer

ROOT = pathlib.Path(__file__).parents[2]
PROMPTS = [f"q{i}" for i in range(80)]
RUN = """
import sys
from auditdm_jax.endpoints.config import EndpointConfig, LimitConfig
from auditdm_jax.endpoints.endpoint import Endpoint
config = EndpointConfig(sys.argv[1], "fake", limits=LimitConfig(concurrency=4))
with Endpoint(config, cache=sys.argv[2]) as endpoint:
  prompts = [f"q{i}" for i in range(80)]
  for start in range(0, 80, 20):
    part = prompts[start : start + 20]
    for reply in endpoint.answer([None] * 20, part, max_new_tokens=8):
      print(reply.text, flush=True)
"""


def rows(folder) -> list[dict]:
  files = folder.glob("*.jsonl")
  return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_kill_minus_nine(server, tmp_path):
  server.latency_s = 0.05
  command = [sys.executable, "-c", RUN, server.url, str(tmp_path)]
  with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as first:
    while len(server.served) < 37:
      time.sleep(0.005)
      assert first.poll() is None
    first.send_signal(signal.SIGKILL)
  kept = {row["prompt"] for row in rows(tmp_path)}
  assert len(kept) >= 37 - 4
  time.sleep(0.2)
  done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
  assert done.stdout.split() == [right_answer(None, p) for p in PROMPTS]
  asked = [a.text for a in server.asked]
  assert all(asked.count(prompt) == 1 for prompt in kept)
  # Only what was under way at the kill, of which no answer can have come back.
  assert len(asked) - len(set(asked)) <= 4


def test_what_the_answer_depends_on_is_in_the_key(server, config_of, tmp_path):
  image, other = np.zeros((4, 4, 3), np.uint8), np.ones((4, 4, 3), np.uint8)

  def ask(config, *, image=image, prompt="q", tokens=8) -> None:
    with Endpoint(config, cache=tmp_path) as endpoint:
      endpoint.answer([image], [prompt], max_new_tokens=tokens)

  plain = config_of(server)
  ways = [
    dict(),
    dict(image=other),
    dict(image=None),
    dict(prompt="r"),
    dict(tokens=9),
  ]
  for how in ways:
    ask(plain, **how)
  configs = [
    config_of(server, ask=AskConfig(seed=1)),
    config_of(server, ask=AskConfig(system="s")),
  ]
  for config in configs:
    ask(config)
  assert len(server.asked) == 7
  for how in ways:
    ask(plain, **how)
  # How long to wait is no part of what is asked.
  ask(config_of(server, timeout_s=1.0, retries=9))
  assert len(server.asked) == 7


def test_revision_and_model_are_in_the_key(server, config_of, tmp_path):
  plain = config_of(server)
  for change in (dict(), dict(revision="2"), dict(model="fake2"), dict()):
    with Endpoint(dataclasses.replace(plain, **change), cache=tmp_path) as endpoint:
      endpoint.answer([None], ["q"], max_new_tokens=8)
  assert len(server.asked) == 3


@pytest.mark.parametrize(
  ("way", "reason", "kept"),
  [
    ("always500", Reason.SERVER_ERROR, True),
    ("bad", Reason.REJECTED, True),
    ("refusal", Reason.REFUSED, True),
    ("slow", Reason.TIMEOUT, False),
    ("drop", Reason.CONNECTION, False),
  ],
)
def test_what_no_later_run_would_get_either_is_not_asked_again(
  way, reason, kept, server, config_of, tmp_path
):
  config = config_of(server, timeout_s=1.0, deadline_s=2.0)
  asked = []
  for _ in range(2):
    with Endpoint(config, cache=tmp_path) as endpoint:
      (reply,) = endpoint.answer([None], [f"{way}: x"], max_new_tokens=8)
    assert reply.failure is reason and reply.text is None
    asked.append(sum(a.text.startswith(way) for a in server.asked))
  assert (asked[1] == asked[0]) == kept


def test_a_torn_row_is_asked_again(server, config_of, tmp_path):
  prompts = ["a", "b", "c"]
  with Endpoint(config_of(server, concurrency=1), cache=tmp_path) as endpoint:
    first = endpoint.answer([None] * 3, prompts, max_new_tokens=8)
  (file,) = tmp_path.glob("*.jsonl")
  file.write_bytes(file.read_bytes()[:-10])
  with Endpoint(config_of(server), cache=tmp_path) as endpoint:
    assert endpoint.answer([None] * 3, prompts, max_new_tokens=8) == first
  assert sorted(a.text for a in server.asked) == ["a", "b", "c", "c"]
  assert len(rows(tmp_path)) == 3


def test_processes_read_each_others_answers(server, config_of, tmp_path):
  for process in range(2):
    with Endpoint(config_of(server), cache=tmp_path, process=process) as endpoint:
      endpoint.answer([None] * 2, ["shared", str(process)], max_new_tokens=8)
  assert len(server.asked) == 3 and len(list(tmp_path.glob("*.jsonl"))) == 2


def test_fresh_questions_leave_the_cache_alone(server, config_of, tmp_path):
  with Endpoint(config_of(server), cache=tmp_path) as endpoint:
    for fresh in (True, False, True, False):
      endpoint.answer([None], ["q"], max_new_tokens=8, fresh=fresh)
  assert len(server.asked) == 3 and len(rows(tmp_path)) == 1
