# SPDX-License-Identifier: Apache-2.0
"""Examples about random pictures, for exports."""

import numpy as np

from auditdm_jax.core.image_store import Images
from auditdm_jax.rectify import export
from auditdm_jax.rectify.curate import TrainingExample
from auditdm_jax.rectify.export import Exported, Firewall, Sourced


def picture(seed: int) -> np.ndarray:
  """u8[32,32,3], coarse enough to be told apart after any resizing."""
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (4, 4, 3), np.uint8).repeat(8, 0).repeat(8, 1)


PICTURES = {Images.id_of(picture(i)): picture(i) for i in range(12)}
IDS = list(PICTURES)


def sourced(i: int, *, question="", label="red", source: int | None = None) -> Sourced:
  """An example about picture i, which may be made from another one."""
  example = TrainingExample(
    image_id=IDS[i],
    question=question or f"what color is object {i}",
    label=label,
    group="mode",
    provenance={"probe_id": f"p{i}"},
  )
  return Sourced(example=example, source_image=IDS[i if source is None else source], source="own/1")


def collect(examples=None, **options) -> Exported:
  """What is exported of examples, or of twelve."""
  examples = [sourced(i) for i in range(12)] if examples is None else examples
  options = {"firewall": Firewall(), "val_share": 0.25, **options}
  return export.collect(examples, load=PICTURES.__getitem__, **options)
