# SPDX-License-Identifier: Apache-2.0
"""Messages and method stubs of images.proto, compiled in memory at import (a few milliseconds).

Nothing is generated into the source tree or a cache: no build step, no stale stubs, and any number
of processes may start at once.
"""

from collections.abc import Awaitable, Callable, Mapping
import pathlib
import tempfile
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
import grpc
from grpc_tools import protoc

_PACKAGE = "auditdm.image.v1"
_FILE = "images.proto"


def _compile() -> descriptor_pool.DescriptorPool:
  """A pool of its own, so that another copy of the proto in the process cannot clash."""
  with tempfile.TemporaryDirectory() as folder:
    out = pathlib.Path(folder, "images.bin")
    here = pathlib.Path(__file__).parent
    if protoc.main(["protoc", f"--proto_path={here}", f"--descriptor_set_out={out}", _FILE]):
      raise RuntimeError(f"protoc could not compile {here / _FILE}; its message is on stderr")
    files = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
  pool = descriptor_pool.DescriptorPool()
  for file in files.file:
    pool.Add(file)
  return pool


POOL = _compile()
SERVICE = POOL.FindServiceByName(f"{_PACKAGE}.ImageService")
_CLASSES = message_factory.GetMessageClassesForFiles([_FILE], POOL)

GenerateRequest = _CLASSES[f"{_PACKAGE}.GenerateRequest"]
EditRequest = _CLASSES[f"{_PACKAGE}.EditRequest"]
Image = _CLASSES[f"{_PACKAGE}.Image"]
ImageResponse = _CLASSES[f"{_PACKAGE}.ImageResponse"]
Timings = _CLASSES[f"{_PACKAGE}.Timings"]
GetModelInfoRequest = _CLASSES[f"{_PACKAGE}.GetModelInfoRequest"]
ModelInfo = _CLASSES[f"{_PACKAGE}.ModelInfo"]
_ENUMS = POOL.FindFileByName(_FILE).enum_types_by_name
RAW_RGB8 = _ENUMS["Encoding"].values_by_name["ENCODING_RAW_RGB8"].number
REASONS = tuple(v.name.removeprefix("REASON_") for v in _ENUMS["Reason"].values if v.number)


class Stub:
  """The service's methods on a channel."""

  def __init__(self, channel: grpc.Channel):
    self.generate = _unary(channel, "Generate")
    self.edit = _unary(channel, "Edit")
    self.get_model_info = _unary(channel, "GetModelInfo")


def _unary(channel: grpc.Channel, method: str) -> grpc.UnaryUnaryMultiCallable:
  response = _CLASSES[SERVICE.methods_by_name[method].output_type.full_name]
  return channel.unary_unary(
    f"/{SERVICE.full_name}/{method}",
    request_serializer=lambda message: message.SerializeToString(),
    response_deserializer=response.FromString,
  )


def handlers(methods: Mapping[str, Callable[..., Awaitable[Any]]]) -> grpc.GenericRpcHandler:
  """The server side: one coroutine function (request, context) per method of the proto."""
  if missing := set(SERVICE.methods_by_name) ^ set(methods):
    raise ValueError(f"handlers and {_FILE} differ in {sorted(missing)}")
  rpcs = {
    name: grpc.unary_unary_rpc_method_handler(
      method,
      request_deserializer=_CLASSES[SERVICE.methods_by_name[name].input_type.full_name].FromString,
      response_serializer=lambda message: message.SerializeToString(),
    )
    for name, method in methods.items()
  }
  return grpc.method_handlers_generic_handler(SERVICE.full_name, rpcs)
