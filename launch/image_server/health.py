# SPDX-License-Identifier: Apache-2.0
"""Exit code 0 when the image service at an address is SERVING: health.py 127.0.0.1:8500 [ca.pem].

With TLS and no CA the certificate's own is taken on trust: this asks for health and sends nothing.
"""

import pathlib
import ssl
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_SERVING = health_pb2.HealthCheckResponse.SERVING


def main(address: str, ca: str = "") -> int:
  for channel in _channels(address, ca):
    with channel:
      try:
        status = health_pb2_grpc.HealthStub(channel).Check(
          health_pb2.HealthCheckRequest(), timeout=4.0
        )
        return 0 if status.status == _SERVING else 1
      except grpc.RpcError as error:
        print(error.code().name, error.details(), file=sys.stderr)
  return 1


def _channels(address: str, ca: str):
  if not ca:
    yield grpc.insecure_channel(address)
    host, _, port = address.rpartition(":")
    try:
      pem = ssl.get_server_certificate((host, int(port)), timeout=4.0).encode()
    except OSError:  # No TLS either, or nobody there.
      return
  else:
    pem = pathlib.Path(ca).read_bytes()
  yield grpc.secure_channel(address, grpc.ssl_channel_credentials(pem))


if __name__ == "__main__":
  sys.exit(main(*sys.argv[1:]))
