# SPDX-License-Identifier: Apache-2.0
"""Messages and method stubs of images.proto, from its compiled form images.binpb.

That file lies beside the proto, so that no compiler is needed to install or to start. After a
change of the proto `python -m tools.compile_proto` writes it anew; a test compares the two.
"""

from collections.abc import Callable, Mapping
import pathlib
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
import grpc

_PACKAGE = "auditdm.image.v1"
_FILE = "images.proto"


def _load() -> descriptor_pool.DescriptorPool:
  """A pool of its own, so that another copy of the proto in the process cannot clash."""
  data = pathlib.Path(__file__).with_name("images.binpb").read_bytes()
  pool = descriptor_pool.DescriptorPool()
  for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
    pool.Add(file)
  return pool


POOL = _load()
SERVICE = POOL.FindServiceByName(f"{_PACKAGE}.ImageService")
_CLASSES = message_factory.GetMessageClassesForFiles([_FILE], POOL)

GenerateRequest = _CLASSES[f"{_PACKAGE}.GenerateRequest"]
EditRequest = _CLASSES[f"{_PACKAGE}.EditRequest"]
Options = _CLASSES[f"{_PACKAGE}.Options"]
Image = _CLASSES[f"{_PACKAGE}.Image"]
ImageResponse = _CLASSES[f"{_PACKAGE}.ImageResponse"]
Timings = _CLASSES[f"{_PACKAGE}.Timings"]
Item = _CLASSES[f"{_PACKAGE}.Item"]
BatchRequest = _CLASSES[f"{_PACKAGE}.BatchRequest"]
BatchItem = _CLASSES[f"{_PACKAGE}.BatchItem"]
Error = _CLASSES[f"{_PACKAGE}.Error"]
Event = _CLASSES[f"{_PACKAGE}.Event"]
Queued = _CLASSES[f"{_PACKAGE}.Queued"]
Step = _CLASSES[f"{_PACKAGE}.Step"]
GetResultRequest = _CLASSES[f"{_PACKAGE}.GetResultRequest"]
GetModelInfoRequest = _CLASSES[f"{_PACKAGE}.GetModelInfoRequest"]
ModelInfo = _CLASSES[f"{_PACKAGE}.ModelInfo"]
Size = _CLASSES[f"{_PACKAGE}.Size"]
_ENUMS = POOL.FindFileByName(_FILE).enum_types_by_name
_ENCODINGS = _ENUMS["Encoding"].values_by_name
RAW_RGB8 = _ENCODINGS["ENCODING_RAW_RGB8"].number
PNG = _ENCODINGS["ENCODING_PNG"].number
WEBP_LOSSLESS = _ENCODINGS["ENCODING_WEBP_LOSSLESS"].number
JPEG = _ENCODINGS["ENCODING_JPEG"].number
REASON_NUMBERS = {v.name.removeprefix("REASON_"): v.number for v in _ENUMS["Reason"].values}


class Stub:
  """The service's methods on a channel."""

  def __init__(self, channel: grpc.Channel):
    self.generate = _method(channel, "Generate")
    self.edit = _method(channel, "Edit")
    self.generate_batch = _method(channel, "GenerateBatch")
    self.watch = _method(channel, "Watch")
    self.get_result = _method(channel, "GetResult")
    self.get_model_info = _method(channel, "GetModelInfo")


def _method(channel: grpc.Channel, name: str) -> Callable[..., Any]:
  method = SERVICE.methods_by_name[name]
  make = channel.unary_stream if method.server_streaming else channel.unary_unary
  return make(
    f"/{SERVICE.full_name}/{name}",
    request_serializer=lambda message: message.SerializeToString(),
    response_deserializer=_CLASSES[method.output_type.full_name].FromString,
  )


def handlers(methods: Mapping[str, Callable[..., Any]]) -> grpc.GenericRpcHandler:
  """Returns the server side: one coroutine or async generator (request, context) per method."""
  if missing := set(SERVICE.methods_by_name) ^ set(methods):
    raise ValueError(f"handlers and {_FILE} differ in {sorted(missing)}")
  rpcs = {}
  for name, call in methods.items():
    method = SERVICE.methods_by_name[name]
    make = (
      grpc.unary_stream_rpc_method_handler
      if method.server_streaming
      else grpc.unary_unary_rpc_method_handler
    )
    rpcs[name] = make(
      call,
      request_deserializer=_CLASSES[method.input_type.full_name].FromString,
      response_serializer=lambda message: message.SerializeToString(),
    )
  return grpc.method_handlers_generic_handler(SERVICE.full_name, rpcs)
