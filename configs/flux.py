# SPDX-License-Identifier: Apache-2.0
"""The image service with FLUX.1 on a GPU: captions to images, and edits of images.

COMMAND
  python -m auditdm_jax serve-images \\
    --config=configs/flux.py:generate=/models/FLUX.1-dev,edit=/models/FLUX.1-Kontext-dev

ARGS
  generate  folder of a FLUX pipeline of diffusers, or OWNER/NAME@COMMIT of the hub; empty = none
  edit      the same of FLUX Kontext; empty = none
  port      of the service; one process per GPU (CUDA_VISIBLE_DEVICES), each on ports of its own
  metrics   port of Prometheus metrics; 0 = none

Both models need a card of 80 GB; one of them, 40 GB. Served beyond this machine, the service wants
credentials: --config.images.host=0.0.0.0 --config.images.security.cert=server.pem
--config.images.security.key=server.key --config.images.security.token=token.txt
"""

import pathlib
import runpy

from ml_collections import ConfigDict

parse = runpy.run_path(str(pathlib.Path(__file__).with_name("common.py")))["parse"]
ARGS = {"generate": "", "edit": "", "port": 8500, "metrics": 9500}


def get_config(arg: str = "") -> ConfigDict:
  args = parse("configs/flux.py", arg, ARGS)
  c = ConfigDict()
  c.images = dict(
    backend="diffusers",
    model=dict(
      generate=args["generate"], edit=args["edit"], device="", dtype="", steps=28, guidance=3.5,
      max_sequence_length=512,
    ),
    # Of the first images, which warm the model up; requests may have other sizes.
    width=512, height=512,
    host="127.0.0.1", port=args["port"], metrics_port=args["metrics"],
    ready_s=900.0, drain_s=120.0, reflection=False,
    # A card computes at its limit from one image on: batches gain little and cost memory.
    batching=dict(max_batch=4, max_wait_ms=10.0),
    # Kontext is trained at a megapixel. Clients scale what is larger or smaller, and bring it back.
    limits=dict(
      max_prompt_chars=2000, max_pixels=1 << 20, min_side=256, max_side=2048, max_steps=50,
      max_queue=256, max_queue_mb=512.0, cache_mb=1024.0, max_deadline_s=900.0,
    ),
    security=dict(cert="", key="", ca="", token=""),
  )  # fmt: skip
  return c
