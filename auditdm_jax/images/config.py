# SPDX-License-Identifier: Apache-2.0
"""The `images` section of a config: the same for the process that serves and those that ask."""

import dataclasses
import ipaddress

from auditdm_jax.core.config import check
from auditdm_jax.images.backend import MAX_PIXELS, MAX_SIDE


@dataclasses.dataclass(frozen=True)
class Limits:
  """What the server refuses before the queue; every prompt is untrusted input.

  Clients scale a source down to `max_pixels` and `max_side`, and up to `min_side`.

  Attributes:
    max_prompt_chars: longest text.
    max_pixels: most pixels of an image.
    min_side: shortest side, in pixels.
    max_side: longest side, in pixels.
    max_steps: most steps of a request.
    max_cost: most pixels x steps of a request.
    max_queue: most requests that wait.
    max_queue_mb: most memory of the source images that wait.
    cache_mb: memory of finished images that are kept.
    max_deadline_s: longest time that a request may be given.
    client_rate: images that one client may ask for in a second, in the long run; 0 = any number. A
      client is the name in its certificate, or else its address, of IPv6 the first half.
    client_burst: how many it may ask for at once before that.
  """

  max_prompt_chars: int = 2000
  max_pixels: int = 1 << 20
  min_side: int = 1
  max_side: int = MAX_SIDE
  max_steps: int = 100
  max_cost: int = 60 << 20  # pixels x steps
  max_queue: int = 512  # requests
  max_queue_mb: float = 256.0  # of source images
  cache_mb: float = 64.0  # of finished images
  max_deadline_s: float = 600.0
  client_rate: float = 1000.0  # images a second
  client_burst: int = 2000

  def __post_init__(self):
    values, where = vars(self), "images.limits"
    check(values, where, "max_prompt_chars", least=1, most=1 << 26)  # gRPC counts in 31 bits.
    check(values, where, "max_pixels", least=1, most=MAX_PIXELS)
    check(values, where, "min_side", "max_side", least=1, most=MAX_SIDE)
    if self.min_side > self.max_side or self.min_side**2 > self.max_pixels:
      raise ValueError(
        f"min_side={self.min_side} leaves no size under max_side={self.max_side} and"
        f" max_pixels={self.max_pixels}"
      )
    check(values, where, "max_steps", "max_cost", "max_queue", "client_burst", least=1)
    check(values, where, "max_queue_mb", "max_deadline_s", above=0)
    check(values, where, "cache_mb", "client_rate", least=0)


@dataclasses.dataclass(frozen=True)
class Batching:
  """How requests share a call of the backend.

  Attributes:
    max_batch: rows per call.
    max_wait_ms: how long the first row waits for companions while the backend is idle.
  """

  max_batch: int = 16
  max_wait_ms: float = 1.0

  def __post_init__(self):
    check(vars(self), "images.batching", "max_batch", least=1)
    check(vars(self), "images.batching", "max_wait_ms", least=0)


@dataclasses.dataclass(frozen=True)
class Security:
  """One side's credentials, as paths of files; "" = without.

  Attributes:
    cert: PEM certificate chain of this side; on a server it turns TLS on.
    key: PEM private key of it.
    ca: PEM certificates that must have signed the other side's; on a server it demands client
      certificates (mTLS), on a client it turns TLS on.
    token: a shared secret of one line; clients send it as a bearer token, servers demand it.
  """

  cert: str = ""
  key: str = ""
  ca: str = ""
  token: str = ""

  def __post_init__(self):
    if bool(self.cert) != bool(self.key):
      raise ValueError("cert and key are given together or not at all")


@dataclasses.dataclass(frozen=True)
class ClientConfig:
  """How a client asks: 2 x max_batch in flight reach about nine tenths of full batches.

  Attributes:
    deadline_s: per request, from the moment it is sent, retries included.
    max_in_flight: requests under way per replica; further ones wait in the client.
    retries: at most so many after the first try; None = as many as the deadline allows.
    deterministic: ask for images that do not depend by a bit on what shares their batch.
    local_edits: paste only the changed region of an edit into its source, so that the rest stays
      the same by construction.
    cache: folder of finished images, by the content of their requests; "" = none.
    security: credentials of the client.
  """

  deadline_s: float = 300.0
  max_in_flight: int = 32
  retries: int | None = None
  deterministic: bool = False
  local_edits: bool = False
  cache: str = ""
  security: Security = Security()

  def __post_init__(self):
    check(vars(self), "images.client", "deadline_s", above=0)
    check(vars(self), "images.client", "max_in_flight", least=1)
    if self.retries is not None:
      check(vars(self), "images.client", "retries", least=0)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The model of a backend that has one.

  Attributes:
    generate: for `diffusers` a FLUX pipeline, as a folder or as OWNER/NAME@COMMIT of the hub; for
      `openai` the model's name; "" = it cannot generate.
    edit: the same for the model that edits, such as FLUX Kontext.
    device: "" = the GPU if there is one.
    dtype: "" = bfloat16 on a GPU, float32 on a CPU.
    steps: number of steps where a request gives none.
    guidance: scale where a request gives none: an input of a distilled model, else the scale of
      classifier-free guidance.
    max_sequence_length: tokens that T5 pads a text to. It attends to the padding, so that another
      length draws another image.
    url: base of an OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1.
    sizes: (width, height) that the endpoint draws; () = any whose sides are multiples of
      `multiple`. It cannot be asked.
    multiple: what the endpoint's sides must be multiples of; pipelines of diffusers know theirs.
    api_key_env: environment variable that holds its key; "" = it needs none.
    timeout_s: longest time for one answer of that endpoint.
  """

  generate: str = ""
  edit: str = ""
  device: str = ""
  dtype: str = ""
  steps: int = 28
  guidance: float = 3.5
  max_sequence_length: int = 512
  url: str = ""
  sizes: tuple[tuple[int, int], ...] = ()
  multiple: int = 16
  api_key_env: str = ""
  timeout_s: float = 120.0

  def __post_init__(self):
    check(vars(self), "images.model", "multiple", least=1, most=MAX_SIDE)
    for width, height in self.sizes:
      sides: dict[str, int] = {"width": width, "height": height}
      check(sides, "images.model.sizes", least=1, most=MAX_SIDE)


@dataclasses.dataclass(frozen=True)
class ImagesConfig:
  """The service as a whole.

  Attributes:
    backend: what makes the images: scenes, needle, diffusers, openai, or the import path of a
      function of your own, package.module:NAME. It takes this section and returns a `Backend`.
    error_rate: share of images that the scenes backend makes wrong on purpose.
    seed: seed of those errors.
    width: width of the first images, which warm the model up; requests have sizes of their own.
    height: height of the first images.
    address: host:port of a running service, or several with commas between; "" = the run starts
      its own.
    host: where to listen; beyond loopback, with `security` or on a private network only.
    port: 0 = any free one.
    metrics_port: port of the Prometheus metrics; 0 = none.
    metrics_host: where they listen; they have no password.
    ready_s: time to load the model and make the first images.
    drain_s: time to finish what is in flight when asked to stop.
    reflection: let tools such as grpcurl ask for the proto.
    model: the model of the diffusers and openai backends.
    security: credentials of the server.
  """

  backend: str = "scenes"
  error_rate: float = 0.0
  seed: int = 0
  width: int = 64
  height: int = 64
  address: str = ""
  host: str = "127.0.0.1"
  port: int = 0
  metrics_port: int = 0
  metrics_host: str = "127.0.0.1"
  ready_s: float = 120.0
  drain_s: float = 10.0
  reflection: bool = False
  model: ModelConfig = ModelConfig()
  limits: Limits = Limits()
  batching: Batching = Batching()
  client: ClientConfig = ClientConfig()
  security: Security = Security()

  def __post_init__(self):
    values, where = vars(self), "images"
    check(values, where, "width", "height", least=1, most=MAX_SIDE)
    # gRPC would take a port modulo 65536, in silence.
    check(values, where, "port", "metrics_port", least=0, most=65535)
    check(values, where, "ready_s", above=0)
    check(values, where, "drain_s", least=0)
    if self.security.ca and not self.security.cert:
      raise ValueError(
        "security.ca asks for the clients' certificates, which takes encryption: give security.cert"
        " and security.key too"
      )
    if self.security.token and not self.security.cert and not is_loopback(self.host):
      raise ValueError(
        f"security.token would cross the network in clear from {self.host}: give security.cert too"
      )


def is_loopback(host: str) -> bool:
  """Returns whether a host name or address is this machine, and nothing leaves it."""
  if host == "localhost":
    return True
  try:
    return ipaddress.ip_address(host.strip("[]")).is_loopback
  except ValueError:
    return False
