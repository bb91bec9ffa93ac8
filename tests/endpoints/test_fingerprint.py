# SPDX-License-Identifier: Apache-2.0
import json
import time

from auditdm_jax.core.jsonio import plain
from auditdm_jax.endpoints.endpoint import Endpoint
from auditdm_jax.endpoints.fingerprint import changes, fingerprint
from tests.endpoints.fake_server import completion


def take(server, config_of):
  with Endpoint(config_of(server)) as endpoint:
    return fingerprint(endpoint)


def stored(found) -> dict:
  """As it comes back from a manifest."""
  return json.loads(json.dumps(plain(found)))


def test_the_same_endpoint_has_the_same_fingerprint(server, config_of):
  server.models = [{"id": "other"}, {"id": "fake", "created": time.time(), "root": "/models/fake"}]
  first = take(server, config_of)
  assert (first.server, first.version, first.origin) == ("fake/1", "1.0", "fake-1 b1")
  assert first.entry == {"id": "fake", "root": "/models/fake"} and first.repeatable
  server.models[1]["created"] += 1  # As vLLM does.
  assert changes(stored(first), take(server, config_of)) == []


def test_what_changed_is_said(server, config_of):
  first = stored(take(server, config_of))
  server.version = "1.1"
  assert changes(first, take(server, config_of)) == ["version was 1.0, is 1.1"]
  server.version, server.models = "1.0", [{"id": "fake", "root": "/elsewhere"}]
  (line,) = changes(first, take(server, config_of))
  assert line.startswith("entry was {") and "elsewhere" in line


def test_other_answers_of_the_same_name_are_a_change(server, config_of):
  first = stored(take(server, config_of))
  server.blind = True
  (line,) = changes(first, take(server, config_of))
  assert "answers to fixed questions changed" in line and "→" in line


def test_answers_that_do_not_repeat_are_no_evidence(server, config_of):
  server.samples = True
  first = take(server, config_of)
  assert not first.repeatable
  assert changes(stored(first), take(server, config_of)) == []


def test_a_server_that_tells_nothing(server, config_of):
  server.models = []
  server.respond = lambda asked: completion("yes")
  found = take(server, config_of)
  assert found.entry == {} and found.texts == ("yes",) * 4


def test_a_hostile_entry_is_bounded(server, config_of):
  server.models = [{"id": "fake", "junk": "\x1b" * 100_000}]
  assert len(json.dumps(plain(take(server, config_of)))) < 2000
