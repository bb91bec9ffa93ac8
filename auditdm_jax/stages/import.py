# SPDX-License-Identifier: Apache-2.0
"""import: brings a checkpoint that was trained elsewhere back as the repaired target of a run.

  python -m auditdm_jax import --workdir=runs/first --from=bv_workdir

1. --from is a big_vision workdir, checkpoint folder or npz, an Orbax checkpoint, or a folder of
   Hugging Face or of this package. Its sizes must be the target's.
2. It is written to WORKDIR/rectify/NAME, with the tokenizer and template of the target. A
   checkpoint without a config of its own was trained without a cap on its logits, and has none.
3. The run's benchmark is put to it, so that `loop` and `reaudit` go on with it.
4. Answers to the export's validation questions, which big_vision's evaluator left in its workdir,
   are scored.

See docs/export.md.

Reads:  --from; a run whose failures are verified; the export, if there is one.
Writes: WORKDIR/rectify/NAME, about as large as the model in fp32, and the benchmark's answers.
Costs:  reading the weights a few times, and the benchmark of the run.
"""

from absl import flags

from auditdm_jax.core import overrides
from auditdm_jax.core.config import UserError
from auditdm_jax.stages import importing, past

FLAGS = flags.FlagValues()
_CONFIG = overrides.define(
  "The run's config; by default as its manifest has it.", flag_values=FLAGS
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "The folder of the run.", required=True, flag_values=FLAGS
)
_FROM = flags.DEFINE_string("from", None, "The checkpoint.", required=True, flag_values=FLAGS)
_NAME = flags.DEFINE_string(
  "name", "repaired", "What the run calls it; WORKDIR/rectify/NAME.", flag_values=FLAGS
)
_EXPORT = flags.DEFINE_string(
  "export",
  None,
  "The export that it was trained on; by default WORKDIR/export/big_vision if it is there.",
  flag_values=FLAGS,
)
_ANSWERS = flags.DEFINE_string(
  "answers",
  None,
  "What the evaluator wrote; by default val_answers.json in --from if it is there.",
  flag_values=FLAGS,
)


def main() -> int:
  """Imports what the flags name."""
  if _WORKDIR.value is None or _FROM.value is None:
    raise UserError("import needs --workdir and --from; see import --help")
  options = importing.Options(
    source=_FROM.value,
    name=_NAME.value,
    export=_EXPORT.value or "",
    answers=_ANSWERS.value or "",
  )
  with past.opened(_WORKDIR.value, "import", config=_CONFIG.value) as ctx:
    for line in importing.run(ctx, options):
      print(line, flush=True)
  return 0
