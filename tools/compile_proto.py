# SPDX-License-Identifier: Apache-2.0
"""Compiles auditdm_jax/images/images.proto into images.binpb, which the package reads.

python -m tools.compile_proto
"""

import pathlib
import tempfile

from grpc_tools import protoc

PROTO = pathlib.Path(__file__).parents[1] / "auditdm_jax/images/images.proto"
COMPILED = PROTO.with_suffix(".binpb")


def compiled() -> bytes:
  """Returns the descriptors of the proto.

  Raises:
    RuntimeError: protoc does not compile it; its message is on stderr.
  """
  with tempfile.TemporaryDirectory() as folder:
    out = pathlib.Path(folder, "images.binpb")
    flags = [f"--proto_path={PROTO.parent}", f"--descriptor_set_out={out}"]
    if protoc.main(["protoc", *flags, PROTO.name]):
      raise RuntimeError(f"protoc could not compile {PROTO}")
    return out.read_bytes()


if __name__ == "__main__":
  COMPILED.write_bytes(compiled())
