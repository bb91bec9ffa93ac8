# SPDX-License-Identifier: Apache-2.0
"""The metrics port is of little use to those who would use it up."""

import contextlib
import socket
import time
import urllib.error
import urllib.request

import prometheus_client as prom
import pytest

from auditdm_jax.images import scrape
from auditdm_jax.images.config import ImagesConfig
from tests.images import fake


@pytest.fixture
def port():
  registry = prom.CollectorRegistry()
  prom.Counter("things", "Counted.", registry=registry).inc(3)
  port = fake.free_port()
  server = scrape.MetricsServer("127.0.0.1", port, registry)
  yield port
  server.close()


def ask(port, path="/metrics"):
  with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20.0) as answer:
    return answer.headers["Content-Type"], answer.read().decode()


def raw(port, data):
  """What comes back for these bytes."""
  with socket.create_connection(("127.0.0.1", port), timeout=20.0) as connection:
    with contextlib.suppress(OSError):  # The other end may close before it has read all.
      connection.sendall(data)
      connection.shutdown(socket.SHUT_WR)
    found = b""
    with contextlib.suppress(ConnectionError):
      while piece := connection.recv(1 << 16):
        found += piece
  return found


def test_metrics_are_served_and_nothing_else(port):
  kind, text = ask(port)
  assert kind.startswith("text/plain") and "things_total 3.0" in text
  with pytest.raises(urllib.error.HTTPError, match="404"):
    ask(port, "/etc/passwd")


@pytest.mark.parametrize(
  ("data", "code"),
  [
    (b"GET /" + b"x" * 5000 + b" HTTP/1.0\r\n\r\n", b"414"),
    (b"GET /" + b"x" * 100_000 + b" HTTP/1.0\r\n\r\n", b"414"),
    (b"GET / HTTP/1.0\r\n" + b"a: b\r\n" * 200 + b"\r\n", b"431"),
    (b"POST /metrics HTTP/1.0\r\nContent-Length: 1\r\n\r\nx", b"501"),
    (b"\x00\xff\r\n\r\n", b"400"),
    (b"", b""),
  ],
)
def test_odd_requests_are_refused(port, data, code, capfd):
  found = raw(port, data)
  assert b"things_total" not in found
  # TCP drops an answer that is under way when bytes come that nobody reads any more.
  assert code in found[:400] or (not found and len(data) > 1 << 16)
  assert "things_total" in ask(port)[1]
  assert "Traceback" not in capfd.readouterr().err


def test_connections_and_their_time_are_bounded(port, monkeypatch):
  """Those that say nothing are cut, and more of them than there is room for at once."""
  monkeypatch.setattr(scrape, "_SECONDS", 1.0)
  begin = time.monotonic()
  with contextlib.ExitStack() as stack:
    silent = [
      stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30.0))
      for _ in range(scrape._CONNECTIONS + 3)
    ]
    for connection in silent:
      with contextlib.suppress(ConnectionError):
        connection.sendall(b"GET ")
    for connection in silent:
      with contextlib.suppress(ConnectionError):
        assert connection.recv(100) == b""
  assert time.monotonic() - begin < 25.0
  assert "things_total" in ask(port)[1]


def test_beyond_this_machine_only_if_asked_for():
  assert ImagesConfig(host="0.0.0.0").metrics_host == "127.0.0.1"
