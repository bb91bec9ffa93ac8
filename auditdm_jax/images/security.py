# SPDX-License-Identifier: Apache-2.0
"""TLS, mTLS and bearer tokens of both sides."""

from collections.abc import Awaitable, Callable
import hmac
import ipaddress
import pathlib
import re
from typing import Any
import urllib.parse

import grpc

from auditdm_jax.images import stubs
from auditdm_jax.images.config import Security, is_loopback
from auditdm_jax.images.failures import RULES, NoImageReason, Refused

_HEADER, _SCHEME = "authorization", "Bearer "
_ADDRESS = re.compile(r"unix:.+|(\[[^][/\s]+\]|[^][/:\s]+):(?P<port>\d{1,5})")


def server_credentials(security: Security) -> grpc.ServerCredentials | None:
  """Returns what the port listens with; None = plaintext. Raises OSError."""
  if not security.cert:
    return None
  pair = _read(security.key), _read(security.cert)
  return grpc.ssl_server_credentials([pair], _read(security.ca), bool(security.ca))


def channel(address: str, security: Security, options: Any) -> grpc.Channel:
  """Returns a channel as the client's credentials say.

  Raises:
    ValueError: a token would cross a network in clear.
    FileNotFoundError: a file of theirs.
  """
  if not security.ca and not security.cert:
    if security.token and not is_near(address):
      raise ValueError(f"the token would cross the network in clear to {address}: give security.ca")
    return grpc.insecure_channel(address, options=options)
  credentials = grpc.ssl_channel_credentials(
    _read(security.ca), _read(security.key), _read(security.cert)
  )
  return grpc.secure_channel(address, credentials, options=options)


def check_address(address: str) -> None:
  """Raises ValueError where gRPC would only never connect."""
  match = _ADDRESS.fullmatch(address)
  if not match or int(match["port"] or 0) >= 2**16:
    raise ValueError(
      f"{address!r} is not the address of an image service, such as 127.0.0.1:8500 or [::1]:8500"
    )


def is_near(address: str) -> bool:
  """Returns whether what is sent there stays on this machine."""
  return address.startswith("unix:") or is_loopback(address.rpartition(":")[0])


def client_of(context: grpc.aio.ServicerContext) -> str:
  """Returns who asks: the name in its certificate, or else its address without the port.

  Of an IPv6 address the first half counts: a client can have any address of its network.
  """
  if names := list(context.peer_identities() or ()):
    return f"name {names[0].decode(errors='replace')}"
  kind, _, rest = urllib.parse.unquote(context.peer()).partition(":")
  host = rest.rpartition(":")[0].strip("[]").partition("%")[0]
  if kind != "ipv6":
    return f"{kind} {host}"
  try:
    address = ipaddress.IPv6Address(host)
  except ValueError:
    return f"{kind} {host}"
  if address.ipv4_mapped is not None:
    return f"ipv4 {address.ipv4_mapped}"
  return f"ipv6 {ipaddress.IPv6Network((int(address) >> 64 << 64, 64))}"


def metadata(security: Security) -> tuple[tuple[str, str], ...]:
  """Returns what a client sends with every call."""
  return ((_HEADER, _SCHEME + _token(security)),) if security.token else ()


class TokenCheck(grpc.aio.ServerInterceptor):
  """Refuses calls of the service without the token; health stays open to everyone."""

  def __init__(self, security: Security):
    self._want = (_SCHEME + _token(security)).encode()

  async def intercept_service(
    self,
    continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
    details: grpc.HandlerCallDetails,
  ) -> grpc.RpcMethodHandler:
    handler = await continuation(details)
    if handler is None or not details.method.startswith(f"/{stubs.SERVICE.full_name}/"):
      return handler
    given = dict(details.invocation_metadata).get(_HEADER, "")
    # In constant time: how long a comparison takes must not tell how much of it was right.
    if hmac.compare_digest(given.encode(), self._want):
      return handler
    make = (
      grpc.unary_stream_rpc_method_handler
      if handler.response_streaming
      else grpc.unary_unary_rpc_method_handler
    )
    return make(_refuse_stream if handler.response_streaming else _refuse)


async def _refuse(request: Any, context: grpc.aio.ServicerContext) -> None:
  del request
  refused = Refused(NoImageReason.UNAUTHENTICATED, NoImageReason.UNAUTHENTICATED.value)
  await context.abort(RULES[refused.reason].code, refused.message, refused.metadata)


async def _refuse_stream(request: Any, context: grpc.aio.ServicerContext):
  await _refuse(request, context)
  yield  # Never reached: makes it a stream.


def _token(security: Security) -> str:
  text = pathlib.Path(security.token).read_text(encoding="utf-8", errors="replace").strip()
  if not text:
    raise ValueError(f"{security.token}: no token in it")
  if not (text.isascii() and text.isprintable()):  # gRPC's metadata takes no other.
    raise ValueError(f"{security.token}: a token is one line of printable ASCII")
  return text


def _read(path: str) -> bytes | None:
  return pathlib.Path(path).read_bytes() if path else None
