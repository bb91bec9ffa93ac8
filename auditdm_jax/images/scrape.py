# SPDX-License-Identifier: Apache-2.0
"""The port on which Prometheus reads the metrics: few connections, small requests, little time.

The server of prometheus_client makes a thread for every connection and waits for each as long as
it takes, so that whoever reaches the port could use up the process that makes the images.
"""

import http.server
import socket
import threading
from typing import Any

import prometheus_client as prom

_CONNECTIONS = 4  # At the same time; more are closed at once.
_SECONDS = 5.0  # For the whole of a connection.
_MAX_LINE = 4096  # Bytes of a request's first line; http.server bounds its headers.


class MetricsServer(http.server.ThreadingHTTPServer):
  """Answers GET /metrics until `close`; one request for each connection."""

  request_queue_size = _CONNECTIONS

  def __init__(self, host: str, port: int, registry: prom.CollectorRegistry):
    """Opens the port and serves in a thread.

    Raises:
      OSError: the port is taken.
    """
    self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
    self.registry = registry
    self._room = threading.BoundedSemaphore(_CONNECTIONS)
    super().__init__((host, port), _Handler)
    self._thread = threading.Thread(target=self.serve_forever, name="metrics", daemon=True)
    self._thread.start()

  def close(self) -> None:
    """Ends the serving and closes the port."""
    self.shutdown()
    self.server_close()

  def process_request(self, request: Any, client_address: Any) -> None:
    """Takes a connection if there is room."""
    if self._room.acquire(blocking=False):
      super().process_request(request, client_address)
    else:
      self.shutdown_request(request)

  def process_request_thread(self, request: Any, client_address: Any) -> None:
    """Answers a connection, which is cut when its time is over."""
    timer = threading.Timer(_SECONDS, _cut, (request,))
    timer.daemon = True
    timer.start()
    try:
      super().process_request_thread(request, client_address)
    finally:
      timer.cancel()
      self._room.release()

  def handle_error(self, request: Any, client_address: Any) -> None:
    """Says nothing: what a stranger sends is no error of ours."""


class _Handler(http.server.BaseHTTPRequestHandler):
  """GET /metrics."""

  server: MetricsServer
  timeout = _SECONDS  # Of each read.

  def do_GET(self) -> None:
    if len(self.requestline) > _MAX_LINE:
      self.send_error(414)
    elif self.path.partition("?")[0] not in ("/", "/metrics"):
      self.send_error(404)
    else:
      body = prom.generate_latest(self.server.registry)
      self.send_response(200)
      self.send_header("Content-Type", prom.CONTENT_TYPE_LATEST)
      self.send_header("Content-Length", str(len(body)))
      self.end_headers()
      self.wfile.write(body)

  def log_message(self, format: str, *args: Any) -> None:
    """Writes no log of requests."""


def _cut(connection: socket.socket) -> None:
  try:
    connection.shutdown(socket.SHUT_RDWR)
  except OSError:  # It has ended by itself.
    pass
