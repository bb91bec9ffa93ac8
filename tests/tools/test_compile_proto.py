# SPDX-License-Identifier: Apache-2.0
"""The compiled proto is that of the proto, and nothing compiles at the start."""

import subprocess
import sys

from google.protobuf import descriptor_pb2

from tools import compile_proto


def test_the_compiled_proto_is_up_to_date():
  have, want = compile_proto.COMPILED.read_bytes(), compile_proto.compiled()
  parse = descriptor_pb2.FileDescriptorSet.FromString
  assert parse(have) == parse(want), "run python -m tools.compile_proto"


def test_the_stubs_need_no_compiler():
  code = (
    "import sys; sys.modules['grpc_tools'] = None; from auditdm_jax.images import stubs;"
    " print(stubs.SERVICE.full_name)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
  )
  assert done.stdout == "auditdm.image.v1.ImageService\n"
