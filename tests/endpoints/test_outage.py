# SPDX-License-Identifier: Apache-2.0
"""An endpoint that is down costs time and no question."""

from collections.abc import Callable
import dataclasses
import logging
import threading
import time

import pytest

from auditdm_jax.endpoints.endpoint import Endpoint
from auditdm_jax.endpoints.failures import EndpointAbsent, EndpointDown
from tests.endpoints.fake_server import Answer, FakeServer, Mode, completion, right_answer

PROMPTS = [f"q{i}" for i in range(60)]
RIGHT = [right_answer(None, p) for p in PROMPTS]


def answer(endpoint: Endpoint, prompts=PROMPTS) -> list[str | None]:
  replies = endpoint.answer([None] * len(prompts), prompts, max_new_tokens=8)
  return [reply.text for reply in replies]


def in_the_middle(server: FakeServer, *work: Callable[[], None] | float) -> threading.Thread:
  """Does things, and sleeps for the numbers between them, once ten questions are answered."""

  def run():
    while len(server.served) < 10:
      time.sleep(0.005)
    for step in work:
      time.sleep(step) if isinstance(step, float) else step()

  thread = threading.Thread(target=run)
  thread.start()
  return thread


def away(server: FakeServer, mode: Mode, seconds: float) -> list[threading.Timer]:
  """Has the server itself change its mode for a while once ten questions are answered."""
  timers: list[threading.Timer] = []

  def respond(asked):
    if len(server.served) >= 10 and not timers:
      server.mode = mode
      timers.append(threading.Timer(seconds, setattr, (server, "mode", "up")))
      timers[0].start()
    return server._right(asked)

  server.respond = respond
  return timers


@pytest.mark.parametrize("retries", [0, 3])
def test_killed_and_started_again_in_the_middle(retries, server, config_of, caplog):
  caplog.set_level(logging.INFO)
  server.latency_s = 0.05
  thread = in_the_middle(server, server.kill, 2.0, server.start)
  with Endpoint(config_of(server, concurrency=4, retries=retries)) as endpoint:
    assert answer(endpoint) == RIGHT
  thread.join()
  usage = endpoint.usage()
  assert usage["answers"] == 60 and usage["pauses"] >= 1
  # It is not hammered meanwhile, and nothing that was answered is asked again.
  assert usage["requests"] < 60 + 40 and set(server.served.values()) == {1}
  assert "no answers" in caplog.text and "answers again" in caplog.text


@pytest.mark.slow
def test_twenty_seconds(server, config_of):
  server.latency_s = 0.05
  thread = in_the_middle(server, server.kill, 20.0, server.start)
  with Endpoint(config_of(server, concurrency=4, outage_s=60.0)) as endpoint:
    assert answer(endpoint) == RIGHT
  thread.join()


@pytest.mark.parametrize("mode", ["500", "html", "429"])
def test_errors_for_everything_are_an_outage(mode, server, config_of):
  server.latency_s = 0.02
  timers = away(server, mode, 1.0)
  with Endpoint(config_of(server, concurrency=4)) as endpoint:
    assert answer(endpoint) == RIGHT
  timers[0].join()
  assert endpoint.usage()["pauses"] >= 1


def test_an_endpoint_that_hangs(server, config_of):
  server.latency_s = 0.02
  timers = away(server, "hang", 4.0)
  config = config_of(server, concurrency=4, timeout_s=1.5, deadline_s=3.0)
  with Endpoint(config) as endpoint:
    assert answer(endpoint) == RIGHT
  timers[0].join()


def test_down_for_too_long_ends_cleanly_and_the_same_command_continues(server, config_of, tmp_path):
  server.latency_s = 0.1
  config = config_of(server, concurrency=4, outage_s=0.5)
  thread = in_the_middle(server, server.kill)
  with Endpoint(config, cache=tmp_path) as endpoint:
    with pytest.raises(EndpointDown, match="has stopped to answer .*The same command") as e:
      answer(endpoint)
  assert "\n" not in str(e.value)
  thread.join()
  done = set(server.served)
  assert 0 < len(done) < 60
  server.start()
  with Endpoint(config, cache=tmp_path) as endpoint:
    assert answer(endpoint) == RIGHT
  assert endpoint.usage()["cached"] == len(done) and set(server.served.values()) == {1}


def test_an_endpoint_that_never_was_there(server, config_of):
  server.kill()
  with Endpoint(config_of(server, outage_s=600.0)) as endpoint:
    start = time.monotonic()
    with pytest.raises(EndpointAbsent, match="does not answer .no connection"):
      answer(endpoint)
    assert time.monotonic() - start < 60
    server.start()
    assert answer(endpoint) == RIGHT  # Being down is not for ever.


def test_bad_questions_all_at_once_are_no_outage(server, config_of):
  """Nothing else is under way that could be answered: the canary tells them from an outage."""
  with Endpoint(config_of(server, concurrency=4, outage_s=600.0)) as endpoint:
    start = time.monotonic()
    assert answer(endpoint, [f"always500: {i}" for i in range(20)]) == [None] * 20
    assert time.monotonic() - start < 60
  usage = endpoint.usage()
  assert usage["no_answer_server_error"] == 20 and "pauses" not in usage


def test_a_question_that_stops_the_server_each_time_is_given_up(server, config_of):
  stops = []

  def restart() -> None:
    server.kill()
    time.sleep(0.2)
    server.start()

  def respond(asked):
    if asked.text == "q30":
      stops.append(threading.Thread(target=restart))
      stops[-1].start()
      return Answer(delay_s=5.0)
    return dataclasses.replace(completion(right_answer(None, asked.text)), delay_s=0.02)

  server.respond = respond
  with Endpoint(config_of(server, concurrency=8, retries=1)) as endpoint:
    found = answer(endpoint)
  for thread in stops:
    thread.join()
  assert found == [None if p == "q30" else r for p, r in zip(PROMPTS, RIGHT)]
  assert len(stops) == 4  # Two for nothing, a try and a further one.
