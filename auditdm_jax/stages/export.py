# SPDX-License-Identifier: Apache-2.0
"""export: writes the verified failures of a run as a folder that another trainer reads.

  python -m auditdm_jax export --workdir=runs/first --to=big_vision --recipe=chartqa
  python -m auditdm_jax export --workdir=runs/first --to=trl --output=exports/chat

1. The examples are those that `rectify` would train on, with the consensus as label.
2. What repeats a benchmark's picture, or a held-out image of the run, is refused; so is hostile
   text. refused.jsonl has the reasons.
3. A share of the source images is for validation.
4. The folder appears when it is whole; the same command again changes nothing.

`import` brings back what was trained. See docs/export.md.

Reads:  a run whose failures are verified; for big_vision, the target's weights.
Writes: --output, by default WORKDIR/export/FORMAT: examples, images, refused.jsonl.
Costs:  no model: each image is looked at once, and the held-out and fresh ones too.
"""

import pathlib

from absl import flags

from auditdm_jax.core import overrides, paths
from auditdm_jax.core.config import UserError
from auditdm_jax.rectify import export as export_lib
from auditdm_jax.rectify.export import Exported
from auditdm_jax.stages import exporting, past

FLAGS = flags.FlagValues()
_CONFIG = overrides.define(
  "The run's config; by default as its manifest has it.", flag_values=FLAGS
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "The folder of the run.", required=True, flag_values=FLAGS
)
_TO = flags.DEFINE_enum(
  "to", None, list(exporting.WRITERS), "The format.", required=True, flag_values=FLAGS
)
_OUTPUT = flags.DEFINE_string(
  "output", None, "The folder to make; by default WORKDIR/export/FORMAT.", flag_values=FLAGS
)
_RECIPE = flags.DEFINE_string(
  "recipe", None, "Of big_vision's config; by default the config's.", flag_values=FLAGS
)
_VAL_SHARE = flags.DEFINE_float(
  "val_share",
  0.1,
  "Share of the source images for validation.",
  lower_bound=0.0,
  upper_bound=0.9,
  flag_values=FLAGS,
)
_LEAKS = flags.DEFINE_multi_string(
  "leaks", [], "Index of benchmarks, in addition to config.benchmark.leaks.", flag_values=FLAGS
)
_LICENCE = flags.DEFINE_string(
  "licence", "", "Of the images and questions, in your words.", flag_values=FLAGS
)
_MODEL_INIT = flags.DEFINE_string(
  "model_init",
  "",
  "For big_vision: the f32 npz to start from, as the machine that trains sees it; by default the"
  " target is written into the folder.",
  flag_values=FLAGS,
)
_TOKENIZER = flags.DEFINE_string(
  "tokenizer",
  "",
  "For big_vision: the SentencePiece file; by default the one beside the target.",
  flag_values=FLAGS,
)


def main() -> int:
  """Exports what the flags name."""
  if _WORKDIR.value is None or _TO.value is None:
    raise UserError("export needs --workdir and --to; see export --help")
  options = exporting.Options(
    to=_TO.value,
    recipe=_RECIPE.value or "",
    val_share=_VAL_SHARE.value,
    leaks=tuple(_LEAKS.value),
    licence=_LICENCE.value,
    model_init=_MODEL_INIT.value,
    tokenizer=_TOKENIZER.value,
  )
  with past.opened(_WORKDIR.value, "export", config=_CONFIG.value) as ctx:
    if _OUTPUT.value is None and paths.is_remote(ctx.folder.path):
      raise UserError("--output is missing: a folder of this machine, since the run's is elsewhere")
    output = _OUTPUT.value or exporting.folder_of(ctx, _TO.value)
    written, exported = exporting.run(ctx, pathlib.Path(output), options)
  if not written:
    print(f"{output}: there already, and the same")
  print(f"{output}: {told(exported)}")
  if not _LICENCE.value:
    print("its licence is not stated; --licence says it to who gets the folder")
  return 0


def told(exported: Exported) -> str:
  """Returns the counts for a terminal."""
  train, val = (exported.of(split) for split in ("train", "val"))
  images = len({r.sourced.source_image for r in train}), len({r.sourced.source_image for r in val})
  text = f"{len(train)} examples of {images[0]} source images"
  text += f", for validation {len(val)} of {images[1]}"
  if exported.refused:
    text += f"; {len(exported.refused)} refused, see {export_lib.REFUSED}"
  return text
