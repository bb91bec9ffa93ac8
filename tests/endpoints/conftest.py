# SPDX-License-Identifier: Apache-2.0
from collections.abc import Iterator

import pytest

from auditdm_jax.endpoints import endpoint, gate
from auditdm_jax.endpoints.config import AskConfig, EndpointConfig, LimitConfig
from tests.endpoints.fake_server import FakeServer


@pytest.fixture
def server() -> Iterator[FakeServer]:
  with FakeServer() as server:
    yield server


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
  monkeypatch.setattr(endpoint, "_BACKOFF_S", 0.02)
  monkeypatch.setattr(gate, "_FIRST_S", 0.02)
  monkeypatch.setattr(gate, "_MAX_S", 0.2)
  monkeypatch.setattr(gate, "_START_S", 1.0)


@pytest.fixture
def config_of():
  """Makes the config of a fake server's endpoint."""

  def config_of(server: FakeServer, *, ask: AskConfig | None = None, **limits) -> EndpointConfig:
    quick = {"timeout_s": 5.0, "deadline_s": 15.0, "outage_s": 20.0, "retries": 2, **limits}
    return EndpointConfig(server.url, "fake", ask=ask or AskConfig(), limits=LimitConfig(**quick))

  return config_of
