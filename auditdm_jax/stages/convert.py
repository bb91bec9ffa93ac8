# SPDX-License-Identifier: Apache-2.0
"""convert: writes a model in another format: Hugging Face, big_vision, Orbax, or our own.

  python -m auditdm_jax convert --input=PATH --output=PATH --to=hf|big_vision|native|orbax

1. The input says itself what it is: a folder of ours or of Hugging Face, an npz file or a
   checkpoint folder of big_vision, an Orbax checkpoint.
2. Every tensor is looked at before the first is written: names and shapes must be the model's.
3. Tensors go over one by one and keep their dtype, unless another is asked for.
4. The output appears when it is whole. Nothing is written over.

Reads:  --input.
Writes: --output, about as large as the model.
Costs:  reading and writing the weights, a tensor at a time; no device.
"""

import pathlib
import shutil
import types

from absl import flags

from auditdm_jax.core import metrics
from auditdm_jax.core.config import UserError, did_you_mean
from auditdm_jax.models import export, variants, weights
from auditdm_jax.models.multimodal import VlmConfig

WRITERS = types.MappingProxyType(
  {
    "hf": export.write_hf,
    "big_vision": export.write_big_vision,
    "native": export.write_native,
    "orbax": export.write_orbax,
  }
)

FLAGS = flags.FlagValues()
_INPUT = flags.DEFINE_string(
  "input", None, "The model: a folder or an npz file.", required=True, flag_values=FLAGS
)
_OUTPUT = flags.DEFINE_string(
  "output",
  None,
  "The folder to make; with --to=big_vision also a file .npz.",
  required=True,
  flag_values=FLAGS,
)
_TO = flags.DEFINE_enum("to", None, list(WRITERS), "The format.", required=True, flag_values=FLAGS)
_MODEL = flags.DEFINE_string(
  "model",
  None,
  "What a file without a config.json is, such as paligemma2_3b_448; by default what its shapes "
  "imply.",
  flag_values=FLAGS,
)
_DTYPE = flags.DEFINE_enum(
  "dtype", None, list(weights.DTYPES), "By default that of the input.", flag_values=FLAGS
)
_IMAGE_SIZE = flags.DEFINE_integer(
  "image_size",
  None,
  "Another resolution, in pixels: the position embeddings are resampled.",
  lower_bound=1,
  flag_values=FLAGS,
)


def main() -> int:
  """Converts what the flags name."""
  source, target = (pathlib.Path(flag.value).absolute() for flag in (_INPUT, _OUTPUT))
  if target.exists():
    raise UserError(f"--output={target} is there already, and nothing is written over")
  opened = weights.open_model(
    source,
    model=_model(_MODEL.value),
    image_size=_IMAGE_SIZE.value,
    dtype=weights.DTYPES[_DTYPE.value] if _DTYPE.value else None,
  )
  if assumed := opened.extras["origin"].get("inferred"):
    print(f"{source.name}: {assumed}")
  weights.check_files(source)
  _check_space(target, sum(leaf.nbytes for leaf in opened.tree.values()))
  with _Bar() as bar:
    WRITERS[_TO.value](target, opened, tick=bar.tick)
  print(f"wrote {target}")
  return 0


class _Bar:
  """Progress whose total is known once the writing begins."""

  def __init__(self):
    self._progress: metrics.Progress | None = None

  def tick(self, done: int, total: int) -> None:
    self._progress = self._progress or metrics.Progress(total, "tensors")
    self._progress.update(done)

  def __enter__(self) -> "_Bar":
    return self

  def __exit__(self, *exc) -> None:
    if self._progress:
      self._progress.close()


def _model(name: str | None) -> VlmConfig | None:
  if name is not None and name not in variants.VARIANTS:
    hint = did_you_mean(name, variants.VARIANTS)
    raise UserError(f"--model={name} is not one of {', '.join(variants.VARIANTS)}{hint}")
  return variants.VARIANTS[name] if name else None


def _check_space(target: pathlib.Path, need: int) -> None:
  """Raises a UserError if the disk has no room: an hour later would be worse."""
  there = next(p for p in target.parents if p.exists())
  free = shutil.disk_usage(there).free
  if need > free:
    raise UserError(f"{there}: {need / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
