# SPDX-License-Identifier: Apache-2.0
"""What goes wrong between a client and a service, made to order."""

from concurrent import futures
import contextlib
import selectors
import socket
import threading

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from auditdm_jax.images import stubs


@contextlib.contextmanager
def scripted(answer, *, serving=True):
  """A server whose images are `answer(request, context, number of the call)`; yields an address."""
  lock, count = threading.Lock(), [0]

  def call(request, context):
    with lock:
      count[0] += 1
      number = count[0]
    return answer(request, context, number)

  def no_info(request, context):
    context.abort(grpc.StatusCode.UNIMPLEMENTED, "scripted")

  methods = dict.fromkeys(stubs.SERVICE.methods_by_name, no_info) | {
    "Generate": call,
    "Edit": call,
  }
  server = grpc.server(
    futures.ThreadPoolExecutor(16),
    options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
  )
  server.add_generic_rpc_handlers((stubs.handlers(methods),))
  states = health.HealthServicer()
  status = health_pb2.HealthCheckResponse
  states.set(stubs.SERVICE.full_name, status.SERVING if serving else status.NOT_SERVING)
  health_pb2_grpc.add_HealthServicer_to_server(states, server)
  port = server.add_insecure_port("127.0.0.1:0")
  server.start()
  try:
    yield f"127.0.0.1:{port}"
  finally:
    server.stop(0)


class Proxy:
  """A TCP proxy in front of an address: it can cut every connection, or after some bytes."""

  def __init__(self, target: str):
    host, _, port = target.rpartition(":")
    self._target = host, int(port)
    self._listener = socket.create_server(("127.0.0.1", 0))
    self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
    self._pairs: list[tuple[socket.socket, socket.socket]] = []
    self.reply_bytes_left: float = float("inf")  # then all connections are cut
    self.frozen = False  # Nothing passes, and nobody is told.
    threading.Thread(target=self._accept, daemon=True).start()

  def __enter__(self) -> "Proxy":
    return self

  def __exit__(self, *_) -> None:
    self._listener.close()
    self.cut()

  def cut(self) -> None:
    """Cuts all connections."""
    while self._pairs:
      for end in self._pairs.pop():
        with contextlib.suppress(OSError):
          end.shutdown(socket.SHUT_RDWR)

  def _accept(self) -> None:
    while True:
      try:
        client, _ = self._listener.accept()
      except OSError:
        return
      try:
        server = socket.create_connection(self._target, timeout=5.0)
      except OSError:
        client.close()
        continue
      self._pairs.append((client, server))
      threading.Thread(target=self._pump, args=(client, server), daemon=True).start()

  def _pump(self, client: socket.socket, server: socket.socket) -> None:
    with client, server, selectors.DefaultSelector() as selector:
      selector.register(client, selectors.EVENT_READ, server)
      selector.register(server, selectors.EVENT_READ, client)
      while selector.get_map():
        for key, _ in selector.select():
          try:
            data = key.fileobj.recv(1 << 14)
            if self.frozen:
              if not data:  # It can be read for ever.
                selector.unregister(key.fileobj)
              continue
            if key.fileobj is server:
              self.reply_bytes_left -= len(data)
              if self.reply_bytes_left < 0:
                self.reply_bytes_left = float("inf")
                self.cut()
                return
            if not data:
              return
            key.data.sendall(data)
          except OSError:
            return
