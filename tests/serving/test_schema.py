# SPDX-License-Identifier: Apache-2.0
"""What a request may say, and how it is told what it may not."""

import json

import pytest

from auditdm_jax.serving import schema
from auditdm_jax.serving.errors import ApiError

PLAIN = {"model": "m", "messages": [{"role": "user", "content": "what"}]}


def parse(**more):
  return schema.parse(json.dumps(PLAIN | more).encode())


def refused(body):
  with pytest.raises(ApiError) as error:
    schema.parse(body)
  assert error.value.status == 400
  return error.value


def test_what_clients_send():
  got = parse(
    temperature=0,
    top_p=0.9,
    n=1,
    seed=-3,
    stop=["a", "b"],
    max_tokens=7,
    stream=True,
    stream_options={"include_usage": True},
    frequency_penalty=0.0,
    presence_penalty=0,
    logprobs=False,
    top_logprobs=None,
    logit_bias={},
    response_format={"type": "text"},
    tools=[],
    tool_choice="none",
    user="me",
    metadata={"a": "b"},
    store=False,
    service_tier="auto",
  )
  assert (got.stops, got.longest, got.includes_usage) == (("a", "b"), 7, True)
  assert parse(stop="a").stops == ("a",) and parse().stops == () and parse().longest is None
  assert parse(max_tokens=3, max_completion_tokens=9).longest == 9
  assert parse(**dict.fromkeys(schema.ChatRequest.model_fields.keys() - PLAIN.keys())) == parse()


def test_what_else_a_client_repeats_of_an_answer_is_ignored():
  answer = {"role": "assistant", "content": "a", "refusal": None, "tool_calls": None, "audio": None}
  messages = [*PLAIN["messages"], answer, {"role": "user", "content": "b", "name": "me"}]
  assert [m.role for m in parse(messages=messages).messages] == ["user", "assistant", "user"]


@pytest.mark.parametrize(
  ("change", "param", "message"),
  [
    ({"temprature": 1}, "temprature", "unknown parameter.*did you mean 'temperature'"),
    ({"temperature": 2.1}, "temperature", "less than or equal to 2"),
    ({"temperature": "1"}, "temperature", "number"),
    ({"temperature": 1, "top_p": 0.5}, None, "top_p 0.5: this server samples from the whole"),
    ({"n": 2}, "n", "only takes 1"),
    ({"logprobs": True}, "logprobs", "only takes False"),
    ({"tools": [{}]}, "tools", r"only takes \[\]"),
    ({"frequency_penalty": 0.1}, "frequency_penalty", "only takes 0"),
    ({"response_format": {"type": "json_object"}}, "response_format", "only takes"),
    ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ({"max_tokens": 1.5}, "max_tokens", "integer"),
    ({"max_completion_tokens": -1}, "max_completion_tokens", "greater than or equal to 1"),
    ({"seed": 1 << 31}, "seed", "less than 2147483648"),
    ({"stop": 3}, "stop", "array"),
    ({"stop": ["a"] * 5}, "stop", "at most 4"),
    ({"stop": ["a", 3]}, "stop.1", "string"),
    ({"stop": ""}, "stop", "1 to 256 characters"),
    ({"stream": "yes"}, "stream", "boolean"),
    ({"messages": []}, "messages", "at least 1"),
    ({"messages": [PLAIN["messages"][0]] * 257}, "messages", "at most 256"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role", "'user'"),
    ({"messages": [{"role": "user"}]}, "messages.0.content", "required"),
    ({"messages": [{"role": "user", "content": None}]}, "messages.0.content", "array"),
  ],
)
def test_a_mistake_is_named(change, param, message):
  error = refused(json.dumps(PLAIN | change).encode())
  assert error.param == param
  with pytest.raises(ApiError, match=message):
    raise error


@pytest.mark.parametrize(
  ("part", "place", "message"),
  [
    ({"type": "text"}, ".text", "required"),
    ({"type": "image_url", "image_url": "data:,"}, ".image_url", "object"),
    ({"type": "image_url", "image_url": {}}, ".image_url.url", "required"),
    ({"type": "input_audio", "input_audio": {}}, "", "'input_audio'.*'text', 'image_url'"),
    ("a", "", "object"),
  ],
)
def test_a_mistake_in_a_part_is_named(part, place, message):
  content = [{"type": "text", "text": "a"}, part]
  error = refused(json.dumps(PLAIN | {"messages": [{"role": "user", "content": content}]}).encode())
  assert error.param == f"messages.0.content.1{place}"
  with pytest.raises(ApiError, match=message):
    raise error


@pytest.mark.parametrize(
  "body",
  [
    b"",
    b"{",
    b"[]",
    b"\xff",
    b"null",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"model": "m", "temperature": NaN}',
    b'{"model": "\\ud800"}',
    b'{"model": "m", "seed": ' + b"9" * 5000 + b"}",
  ],
)
def test_bodies_that_are_no_requests(body):
  refused(body)


def test_errors_are_bounded_and_say_their_kind():
  error = refused(json.dumps(PLAIN | {"x" * 10_000: 1}).encode())
  body = error.body["error"]
  assert len(body["message"]) <= 501 and len(body["param"]) <= 100
  assert body["type"] == "invalid_request_error" and body["code"] == "unknown_parameter"
  full = ApiError(429, "full", retry_s=0.2)
  assert full.body["error"]["type"] == "rate_limit_error" and full.headers == {"Retry-After": "1"}
  assert ApiError(503, "gone").body["error"]["type"] == "server_error"
  assert ApiError(401, "key").headers == {"WWW-Authenticate": "Bearer"}
