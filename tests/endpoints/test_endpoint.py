# SPDX-License-Identifier: Apache-2.0
from concurrent import futures
import dataclasses
import time

import numpy as np
import pytest

from auditdm_jax.endpoints import endpoint as endpoint_lib
from auditdm_jax.endpoints.config import AskConfig, EndpointConfig, PictureConfig, Price
from auditdm_jax.endpoints.endpoint import Endpoint
from auditdm_jax.endpoints.failures import BudgetSpent, EndpointDown, EndpointRefused, Reason
from tests.endpoints import fake_server
from tests.endpoints.fake_server import FakeServer, right_answer

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, (8, 8, 3), np.uint8) for _ in range(3)]

NO_ANSWER = {
  "always500": Reason.SERVER_ERROR,
  "html": Reason.NOT_JSON,
  "garbage": Reason.NOT_JSON,
  "binary": Reason.NOT_JSON,
  "list": Reason.NOT_JSON,
  "deep": Reason.NOT_JSON,
  "empty": Reason.NOT_JSON,
  "events": Reason.NOT_JSON,
  "noevents": Reason.NOT_JSON,
  "null": Reason.NO_CHOICE,
  "nochoice": Reason.NO_CHOICE,
  "nomessage": Reason.NO_CHOICE,
  "notext": Reason.NO_CHOICE,
  "tool": Reason.NO_CHOICE,
  "thought": Reason.CUT,
  "error200": Reason.SERVER_ERROR,
  "refusal": Reason.REFUSED,
  "filter": Reason.FILTERED,
  "azure": Reason.FILTERED,
  "forbidden": Reason.FORBIDDEN,
  "bad": Reason.REJECTED,
  "unknown": Reason.REJECTED,
  "cut": Reason.CONNECTION,
  "drop": Reason.CONNECTION,
  "slow": Reason.TIMEOUT,
  "huge": Reason.TOO_LARGE,
  "long": Reason.TOO_LARGE,
  "gzip": Reason.TOO_LARGE,
}
RIGHT = (
  "once500",
  "once503",
  "once429",
  "date429",
  "bare429",
  "oncehtml",
  "oncecut",
  "onceslow",
  "fine",
)
ENDS = {"later429": EndpointDown, "quota": EndpointRefused, "redirect": EndpointRefused}


def test_every_way_of_the_fake_server_is_tested():
  said = {"parts", "surrogate", "zero", "length", "once404"}
  assert {*NO_ANSWER, *RIGHT, *ENDS, *said} - {"fine"} == set(fake_server.ROUTES)


def ask(endpoint: Endpoint, *prompts: str, image: np.ndarray | None = None, **options):
  return endpoint.answer([image] * len(prompts), prompts, max_new_tokens=8, **options)


def test_every_probe_ends_in_an_answer_or_a_counted_no_answer(server, config_of):
  prompts = [f"{way}: {i}" for i in range(2) for way in (*RIGHT, *NO_ANSWER)]
  with Endpoint(config_of(server, timeout_s=3.0, concurrency=4)) as endpoint:
    replies = ask(endpoint, *prompts, image=IMAGES[0])
  for prompt, reply in zip(prompts, replies, strict=True):
    way = prompt.partition(":")[0]
    assert reply.failure is NO_ANSWER.get(way), prompt
    assert reply.text == (None if way in NO_ANSWER else right_answer(IMAGES[0], prompt)), prompt
  usage = endpoint.usage()
  assert usage["answers"] == 2 * len(RIGHT) and usage["no_answer"] == 2 * len(NO_ANSWER)
  reasons = {k: n for k, n in usage.items() if k.startswith("no_answer_")}
  assert sum(reasons.values()) == usage["no_answer"] and reasons["no_answer_not_json"] == 16
  assert usage["requests"] == len(server.asked)


@pytest.mark.parametrize("way", NO_ANSWER)
def test_a_bad_question_alone_neither_ends_nor_stalls_the_run(way, server, config_of):
  """With no other question under way it is not mistaken for an outage."""
  with Endpoint(config_of(server, timeout_s=1.5, deadline_s=3.0, concurrency=1)) as endpoint:
    start = time.monotonic()
    (bad,) = ask(endpoint, f"{way}: x", image=IMAGES[0])
    (fine,) = ask(endpoint, "fine", image=IMAGES[0])
  assert bad.failure is NO_ANSWER[way] and fine.text is not None
  assert time.monotonic() - start < 15
  assert "pauses" not in endpoint.usage()


@pytest.mark.parametrize("way", RIGHT)
def test_a_passing_fault_alone_costs_no_answer(way, server, config_of):
  with Endpoint(config_of(server, timeout_s=3.0, concurrency=1)) as endpoint:
    (reply,) = ask(endpoint, f"{way}: x")
  assert reply.text == right_answer(None, f"{way}: x")


@pytest.mark.parametrize("way", ENDS)
def test_what_ends_the_run_at_once(way, server, config_of):
  with Endpoint(config_of(server)) as endpoint:
    start = time.monotonic()
    with pytest.raises(ENDS[way]) as e:
      ask(endpoint, *(f"{way}: {i}" for i in range(100)))
  assert "\n" not in str(e.value) and time.monotonic() - start < 15
  assert len(server.asked) <= endpoint.config.limits.concurrency


def test_wrong_key_and_wrong_model(server, config_of):
  server.key = "sk-right"
  with Endpoint(config_of(server)) as endpoint:
    with pytest.raises(EndpointRefused, match="no key is given, see endpoint.key_file.*401"):
      ask(endpoint, *map(str, range(50)))
  assert len(server.asked) <= endpoint.config.limits.concurrency
  server.key = ""
  config = dataclasses.replace(config_of(server), model="fak")
  with Endpoint(config) as endpoint:
    with pytest.raises(
      EndpointRefused, match="did you mean 'fake'.*it has fake .HTTP 404: no such"
    ):
      ask(endpoint, "once404: x")


def test_a_key_that_is_refused_with_403(server, config_of):
  server.respond = lambda asked: fake_server.error(403, "not yours")
  with Endpoint(config_of(server)) as endpoint:
    with pytest.raises(EndpointRefused, match="not accepted .HTTP 403: "):
      ask(endpoint, *map(str, range(50)))


def test_retry_after_is_waited_for_outside_the_timeout(server, config_of):
  config = config_of(server, timeout_s=2.0, deadline_s=2.0, retries=0, concurrency=1)
  for headers in ((("Retry-After", "3"),), fake_server._date(3.0, skew_s=3600.0)):
    said = iter([fake_server.error(429, "slow down", *headers)])
    server.respond = lambda asked, said=said: next(said, None) or server._right(asked)
    with Endpoint(config) as endpoint:
      start = time.monotonic()
      (reply,) = ask(endpoint, "x")
    assert reply.text is not None and 2.9 < time.monotonic() - start < 30


def test_an_endpoint_that_takes_fewer_at_a_time_loses_no_question(server, config_of):
  server.limit, server.latency_s = 3, 0.02
  prompts = [str(i) for i in range(60)]
  with Endpoint(config_of(server, concurrency=12, retries=0)) as endpoint:
    replies = ask(endpoint, *prompts)
  assert [reply.text for reply in replies] == [right_answer(None, p) for p in prompts]


def test_deadline_bounds_all_tries_of_a_question(server, config_of):
  # By its back-offs alone a question would be given up after outage_s.
  config = config_of(server, timeout_s=1.0, deadline_s=2.5, outage_s=60.0, retries=50)
  with Endpoint(config) as endpoint:
    start = time.monotonic()
    (reply,) = ask(endpoint, "slow: x")
  assert reply.failure is Reason.TIMEOUT and time.monotonic() - start < 20


def test_order_duplicates_and_concurrency(server, config_of):
  server.latency_s = 0.02
  prompts = [f"q{i % 30}" for i in range(90)]
  images = [IMAGES[i % 3] for i in range(90)]
  with Endpoint(config_of(server, concurrency=5)) as endpoint:
    replies = endpoint.answer(images, prompts, max_new_tokens=8)
    again = endpoint.answer(images, prompts, max_new_tokens=8)
  assert [r.text for r in replies] == [right_answer(i, p) for i, p in zip(images, prompts)]
  assert again == replies
  assert len(server.asked) == 30 and server.most == 5
  assert endpoint.usage()["answers"] == 30


def test_threads_share_one_bound_and_ask_nothing_twice(server, config_of):
  server.latency_s = 0.02
  prompts = [f"q{i}" for i in range(40)]
  with Endpoint(config_of(server, concurrency=4)) as endpoint:
    with futures.ThreadPoolExecutor(4) as threads:
      found = list(threads.map(lambda _: ask(endpoint, *prompts), range(4)))
  assert all(replies == found[0] for replies in found)
  assert len(server.asked) == 40 and server.most <= 4


def test_what_is_sent(server, config_of):
  with Endpoint(config_of(server)) as endpoint:
    ask(endpoint, "What is it?", image=IMAGES[0])
    ask(endpoint, "What is it?")
  with_picture, without = (asked.body for asked in server.asked)
  assert [p["type"] for p in with_picture["messages"][0]["content"]] == ["image_url", "text"]
  assert without["messages"] == [{"role": "user", "content": "What is it?"}]
  for body in (with_picture, without):
    # Explicitly greedy; one token of slack; nothing that strict servers refuse.
    assert body.keys() == {"model", "messages", "temperature", "max_tokens"}
    assert (body["temperature"], body["max_tokens"], body["model"]) == (0, 9, "fake")
  np.testing.assert_array_equal(server.asked[0].picture, IMAGES[0])
  assert server.asked[0].headers["accept-encoding"] == "identity"


def test_system_text_seed_and_extra_keys(server, config_of):
  ask_config = AskConfig(
    system="Be brief.",
    temperature=None,
    seed=7,
    tokens_field="max_completion_tokens",
    extra={"top_k": 1},
  )
  user = dataclasses.replace(ask_config, system_role="user")
  for config in (ask_config, user):
    with Endpoint(config_of(server, ask=config)) as endpoint:
      ask(endpoint, "What?")
  first, second = (asked.body for asked in server.asked)
  assert first["messages"] == [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What?"},
  ]
  assert second["messages"] == [{"role": "user", "content": "Be brief.\n\nWhat?"}]
  for body in (first, second):
    assert body["seed"] == 7 and body["top_k"] == 1 and body["max_completion_tokens"] == 9
    assert not {"temperature", "max_tokens"} & body.keys()


def test_pictures_are_squeezed_to_the_tower(server, config_of):
  config = dataclasses.replace(config_of(server), pictures=PictureConfig(size=16))
  wide = RNG.integers(0, 256, (8, 40, 3), np.uint8)
  with Endpoint(config) as endpoint:
    ask(endpoint, "What?", image=wide)
  assert server.asked[0].picture.shape == (16, 16, 3)


def test_text_that_utf8_cannot_write(server, config_of):
  with Endpoint(config_of(server)) as endpoint:
    (reply,) = ask(endpoint, "half a pair \ud800 of surrogates")
  assert reply.text is not None and "half a pair ?" in server.asked[0].text


def test_pictures_are_loaded_only_for_what_is_not_cached(server, config_of):
  loaded = []

  class Lazy(list):
    def __getitem__(self, i):
      loaded.append(i)
      return super().__getitem__(i)

  images, prompts, ids = Lazy(IMAGES), ["a", "b", "c"], ["0", "1", "2"]
  with Endpoint(config_of(server)) as endpoint:
    first = endpoint.answer(images, prompts, max_new_tokens=8, image_ids=ids)
    assert sorted(loaded) == [0, 1, 2]
    assert endpoint.answer(images, prompts, max_new_tokens=8, image_ids=ids) == first
  assert sorted(loaded) == [0, 1, 2]


def test_no_tokens_told_are_unknown_and_not_free(server, config_of):
  server.usage = False
  with Endpoint(config_of(server, max_tokens=100)) as endpoint:
    ask(endpoint, "zero: x", "one", "two")
    with pytest.raises(BudgetSpent):
      ask(endpoint, *(f"question {i}" for i in range(20)))
  assert endpoint.usage()["unknown_usage"] == endpoint.usage()["answers"]


def test_usage_and_cost(server, config_of):
  config = dataclasses.replace(config_of(server), price=Price(1e6, 2e6))
  with Endpoint(config) as endpoint:
    ask(endpoint, "two words", "length: x")
    usage = endpoint.usage()
    assert usage == {
      "answers": 2,
      "answers_cut": 1,
      "prompt_tokens": 2,
      "completion_tokens": 1,
      "requests": 2,
      "unknown_usage": 1,
    }
    assert endpoint.cost() == 4.0
  assert all(type(n) is int for n in usage.values())


def test_budget_ends_cleanly_with_what_was_answered_kept(server, config_of, tmp_path):
  server.latency_s = 0.01
  prompts = [f"q{i}" for i in range(50)]
  config = config_of(server, max_requests=20, concurrency=4)
  with Endpoint(config, cache=tmp_path) as endpoint:
    with pytest.raises(BudgetSpent, match="max_requests is 20 and 20 are spent"):
      ask(endpoint, *prompts)
    assert len(server.asked) == 20
    assert [r.text for r in ask(endpoint, *prompts[:16])] == [
      right_answer(None, p) for p in prompts[:16]
    ]
  # A run that goes on has spent them already; with more it asks the rest.
  with Endpoint(config, cache=tmp_path) as endpoint:
    with pytest.raises(BudgetSpent):
      ask(endpoint, *prompts)
  assert len(server.asked) == 20
  with Endpoint(config_of(server, max_requests=50), cache=tmp_path) as endpoint:
    ask(endpoint, *prompts)
  assert len(server.asked) == 50 and set(server.served.values()) == {1}


def test_token_budget(server, config_of):
  with Endpoint(config_of(server, max_tokens=30, concurrency=1)) as endpoint:
    with pytest.raises(BudgetSpent, match="max_tokens is 30"):
      ask(endpoint, *(f"four words are here {i}" for i in range(20)))
  assert len(server.asked) == 5  # 5 + 1 tokens each


def test_an_interrupted_caller_leaves_nothing_behind(server, config_of, monkeypatch):
  server.latency_s = 1.0
  with Endpoint(config_of(server, concurrency=2)) as endpoint:

    def interrupted(work, loop, *, start=endpoint_lib.asyncio.run_coroutine_threadsafe):
      future = start(work, loop)
      time.sleep(0.1)

      def result(timeout=None):
        raise KeyboardInterrupt

      future.result = result
      return future

    with monkeypatch.context() as patch:
      patch.setattr("asyncio.run_coroutine_threadsafe", interrupted)
      with pytest.raises(KeyboardInterrupt):
        ask(endpoint, *map(str, range(50)))
    time.sleep(2.3)  # Time for a third pair.
    assert len(server.asked) <= 4
    assert ask(endpoint, "1")[0].text == right_answer(None, "1")


def test_endpoints_close_without_a_request_and_twice():
  endpoint = Endpoint(EndpointConfig("http://127.0.0.1:1/v1", "m"))
  endpoint.close()
  endpoint.close()


def test_lengths_must_agree(server: FakeServer, config_of):
  with Endpoint(config_of(server)) as endpoint:
    with pytest.raises(ValueError, match="2 images, 1 prompts"):
      endpoint.answer([None, None], ["a"], max_new_tokens=1)


def test_a_server_that_asks_to_come_back_tomorrow_is_not_waited_for(server, config_of):
  """Others are answered meanwhile, so that it is no outage."""
  away = fake_server.error(503, "loading", ("Retry-After", "86400"))
  server.respond = lambda asked: away if asked.text.startswith("bad") else server._right(asked)
  with Endpoint(config_of(server, concurrency=2)) as endpoint:
    start = time.monotonic()
    fine, bad = ask(endpoint, "fine", "bad: x")
  assert fine.text is not None and bad.failure is Reason.SERVER_ERROR
  assert time.monotonic() - start < 15


def test_what_was_limited_once_is_not_down_at_its_next_429(server, config_of):
  """Between them a question was taken and refused; and more time passed than an outage may last."""
  said = iter(
    [
      fake_server.error(429, "slow down", ("Retry-After", "0.1")),
      fake_server.ROUTES["azure"][0],
      fake_server.error(429, "slow down", ("Retry-After", "0.1")),
    ]
  )
  server.respond = lambda asked: next(said, None) or server._right(asked)
  with Endpoint(config_of(server, concurrency=1, outage_s=1.0)) as endpoint:
    (first,) = ask(endpoint, "one")
    time.sleep(1.2)
    (second,) = ask(endpoint, "two")
  assert first.failure is Reason.FILTERED and second.text == right_answer(None, "two")


def test_a_nested_answer_is_an_answer_that_cannot_be_read(server, config_of, tmp_path):
  """With a key, which is looked for at all levels; a kilobyte of brackets is within the bounds."""
  (tmp_path / "key").write_text("sk-right")
  server.key = "sk-right"
  depth = 600
  odd = b', "odd": ' + b"[" * depth + b"]" * depth + b"}"
  whole = fake_server.completion("red").body
  nested = fake_server.Answer(body=whole[:-1] + odd)
  server.respond = lambda asked: nested if asked.text == "bad" else server._right(asked)
  config = dataclasses.replace(config_of(server, retries=0), key_file=str(tmp_path / "key"))
  with Endpoint(config) as endpoint:
    bad, fine = ask(endpoint, "bad", "fine")
  assert bad.failure is Reason.NOT_JSON and fine.text is not None
