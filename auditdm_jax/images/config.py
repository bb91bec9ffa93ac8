# SPDX-License-Identifier: Apache-2.0
"""The `images` section of a config: the same for the process that serves and those that ask."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
  """What the server refuses before the queue; every prompt is untrusted input."""

  max_prompt_chars: int = 2000
  max_pixels: int = 1 << 20
  max_queue: int = 512  # requests
  max_queue_mb: float = 256.0  # of source images
  cache_mb: float = 64.0  # of finished images
  max_deadline_s: float = 600.0


@dataclasses.dataclass(frozen=True)
class Batching:
  """How requests share a call of the backend.

  Attributes:
    max_batch: rows per call.
    max_wait_ms: how long the first row waits for companions while the backend is idle.
  """

  max_batch: int = 16
  max_wait_ms: float = 1.0


@dataclasses.dataclass(frozen=True)
class ClientConfig:
  """How a client asks: 2 x max_batch in flight reach about nine tenths of full batches.

  Attributes:
    deadline_s: per request, from the moment it is sent, retries included.
    max_in_flight: requests under way; further ones wait in the client.
    retries: after the first try.
  """

  deadline_s: float = 60.0
  max_in_flight: int = 32
  retries: int = 12


@dataclasses.dataclass(frozen=True)
class ImagesConfig:
  """The service as a whole.

  Attributes:
    backend: what makes the images.
    error_rate: share of images that the scenes backend makes wrong on purpose.
    seed: of those errors.
    width: of generated images.
    height: of generated images.
    address: host:port of a running service, or several; empty = the run starts its own.
    host: where to listen. There is no encryption: keep to loopback or a private network.
    port: 0 = any free one.
    drain_s: time to finish what is in flight when asked to stop.
  """

  backend: str = "scenes"
  error_rate: float = 0.0
  seed: int = 0
  width: int = 64
  height: int = 64
  address: str | tuple[str, ...] = ""
  host: str = "127.0.0.1"
  port: int = 0
  drain_s: float = 10.0
  limits: Limits = Limits()
  batching: Batching = Batching()
  client: ClientConfig = ClientConfig()

  def __post_init__(self):
    if not 0 <= self.port < 2**16:  # gRPC would take it modulo 65536, in silence.
      raise ValueError(f"port {self.port} is not between 0 and 65535")
