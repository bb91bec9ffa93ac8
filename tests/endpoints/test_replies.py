# SPDX-License-Identifier: Apache-2.0
import json

from hypothesis import given
from hypothesis import strategies as st
import pytest

from auditdm_jax.endpoints import replies
from auditdm_jax.endpoints.failures import Denied, Fault, Reason
from auditdm_jax.endpoints.replies import Reply, Usage
from tests.endpoints.fake_server import completion

LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
JSON = st.recursive(
  LEAF, lambda s: st.lists(s, max_size=3) | st.dictionaries(st.text(max_size=5), s, max_size=3)
)


def read(body: bytes) -> Reply:
  return replies.read(replies.decode(body))


def holds(body: bytes) -> None:
  """A reply has a text or a reason; anything else is a fault with its reason."""
  try:
    reply = read(body)
  except (Fault, Denied) as e:
    assert "\n" not in str(e) and len(str(e)) < 500
    return
  assert (reply.text is None) == (reply.failure is not None)
  json.dumps(reply.text).encode()
  (reply.text or "").encode()


@given(st.binary(max_size=100))
def test_any_bytes(body):
  holds(body)


@pytest.mark.parametrize(
  ("logprobs", "logprob"),
  [
    ({"content": [{"token": "r", "logprob": -0.25}, {"token": "ed", "logprob": 0}]}, -0.25),
    ({"content": [{"token": "r", "logprob": -0.25}, {"token": "ed"}]}, None),
    ({"content": [{"logprob": 10**400}]}, None),
    ({"content": []}, None),
    ({"content": None}, None),
    (None, None),
  ],
)
def test_log_probs(logprobs, logprob):
  choice = {"message": {"content": "red"}, "finish_reason": "stop", "logprobs": logprobs}
  assert replies.read({"choices": [choice]}).logprob == logprob


@given(JSON, JSON, JSON, JSON, JSON)
def test_any_json_in_any_place(value, content, reason, usage, error):
  message = {"content": content, "refusal": value}
  choice = {"message": message, "finish_reason": reason}
  for answer in (
    value,
    {"choices": value, "error": error},
    {"choices": [value]},
    {"choices": [{"message": value}]},
    {"choices": [choice], "usage": usage, "model": value, "system_fingerprint": value},
    {"choices": [{"message": {"content": "x"}, "logprobs": value}]},
    {"choices": [{"message": {"content": "x"}, "logprobs": {"content": [{"logprob": value}]}}]},
    {"choices": [choice], "usage": {"prompt_tokens": usage, "completion_tokens": value}},
    {"error": {"code": value, "message": error}},
  ):
    holds(json.dumps(answer).encode())


@pytest.mark.parametrize(
  ("reason", "finish"),
  [("stop", "stop"), ("eos", "stop"), (None, "stop"), ("length", "length"), ("weird", "other")],
)
def test_finish(reason, finish):
  reply = read(completion("yes", finish=reason).body)
  assert (reply.text, reply.finish, reply.failure) == ("yes", finish, None)
  assert reply.origin == "fake-1 b1"


@pytest.mark.parametrize(
  ("usage", "known"),
  [
    ({"prompt_tokens": 7, "completion_tokens": 2}, Usage(7, 2)),
    ({"prompt_tokens": 0, "completion_tokens": 0}, Usage()),
    ({"prompt_tokens": 7, "completion_tokens": None}, Usage(7, None)),
    ({"prompt_tokens": True, "completion_tokens": -1}, Usage()),
    ({"prompt_tokens": "7", "completion_tokens": 1 << 60}, Usage()),
    (None, Usage()),
    ([], Usage()),
  ],
)
def test_zero_tokens_are_unknown(usage, known):
  assert read(completion("yes", usage=usage).body).usage == known


def test_an_empty_answer_is_an_answer_and_none_is_not():
  assert read(completion("").body).text == ""
  with pytest.raises(Fault) as e:
    read(completion(None).body)
  assert e.value.reason is Reason.NO_CHOICE


@pytest.mark.parametrize(
  ("error", "reason"),
  [
    ({"code": 502, "message": "x"}, Reason.SERVER_ERROR),
    ({"code": "429", "message": "x"}, Reason.RATE_LIMITED),
    ({"code": "content_filter", "message": "x"}, Reason.FILTERED),
    ("broken", Reason.NO_CHOICE),
  ],
)
def test_an_error_with_status_200(error, reason):
  with pytest.raises(Fault) as e:
    read(json.dumps({"error": error}).encode())
  assert e.value.reason is reason
  with pytest.raises(Denied):
    read(json.dumps({"error": {"code": 401, "message": "x"}}).encode())
  # With an answer beside it, it is null or a note.
  assert read(completion("yes").body[:-1] + b', "error": "late"}').text == "yes"
