# SPDX-License-Identifier: Apache-2.0
"""The key is sent to the endpoint and appears nowhere else, even if the endpoint quotes it."""

import dataclasses
import json
import logging
import traceback

import pytest

from auditdm_jax.core.jsonio import plain
from auditdm_jax.endpoints.config import EndpointConfig
from auditdm_jax.endpoints.endpoint import Endpoint
from auditdm_jax.endpoints.failures import BlindEndpoint, EndpointRefused
from auditdm_jax.endpoints.fingerprint import fingerprint
from auditdm_jax.endpoints.sight import prove_sight

KEY = "sk-Verb0rgen-42"


@pytest.fixture
def config(server, config_of, tmp_path) -> EndpointConfig:
  file = tmp_path / "key"
  file.write_text(KEY + "\n")
  return dataclasses.replace(config_of(server), key_file=str(file))


def test_nowhere(server, config, tmp_path, caplog, capfd):
  caplog.set_level(logging.DEBUG)
  server.key, server.echo, server.models = KEY, True, [{"id": "fake", "note": KEY, KEY: 1}]
  shown = []
  with Endpoint(config, cache=tmp_path / "cache") as endpoint:
    replies = endpoint.answer([None] * 2, ["echo", "bad: echo"], max_new_tokens=8)
    assert "Bearer ***" in (replies[0].text or "") and "Bearer ***" in replies[1].detail
    shown += [replies, endpoint, endpoint.config, vars(endpoint), endpoint.usage()]
    shown += [json.dumps(plain(fingerprint(endpoint))), json.dumps(plain(config))]
    try:
      shown.append(prove_sight(endpoint))
    except BlindEndpoint as error:
      shown += [error, *traceback.format_exception(error)]
  assert all(KEY in asked.headers["authorization"] for asked in server.asked)
  rows = [file.read_text() for file in (tmp_path / "cache").iterdir()]
  assert len(rows) == 1
  said = "".join(capfd.readouterr())
  assert KEY not in "".join(map(repr, shown)) + "".join(rows) + caplog.text + said


def test_not_in_the_error_of_a_wrong_key(server, config):
  server.key, server.echo = "sk-right", True
  with Endpoint(config) as endpoint, pytest.raises(EndpointRefused) as e:
    endpoint.answer([None], ["q"], max_new_tokens=8)
  shown = "".join(traceback.format_exception(e.value))
  assert "not accepted (HTTP 401: wrong key Bearer ***)" in shown and KEY not in shown


def test_the_key_of_another_server_is_not_sent(server, config_of, monkeypatch):
  monkeypatch.setenv("OPENAI_API_KEY", KEY)
  with Endpoint(config_of(server)) as endpoint:
    endpoint.answer([None], ["q"], max_new_tokens=8)
  assert KEY not in str(server.asked[0].headers)


def test_the_key_does_not_follow_a_redirect(server, config):
  with Endpoint(config) as endpoint, pytest.raises(EndpointRefused, match="redirects to http://"):
    endpoint.answer([None], ["redirect: x"], max_new_tokens=8)
  assert len(server.asked) == 1
