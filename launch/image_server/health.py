# SPDX-License-Identifier: Apache-2.0
"""Exit code 0 when the image service whose metrics are at a URL is SERVING.

By its metrics and not by grpc.health.v1: those are open, also where the service wants certificates.
"""

import sys
import urllib.request


def main(url: str = "http://127.0.0.1:9500/metrics") -> int:
  try:
    with urllib.request.urlopen(url, timeout=4.0) as reply:
      lines = reply.read().decode().splitlines()
  except OSError as error:
    print(error, file=sys.stderr)
    return 1
  return 0 if "auditdm_images_ready 1.0" in lines else 1


if __name__ == "__main__":
  sys.exit(main(*sys.argv[1:]))
