# SPDX-License-Identifier: Apache-2.0
"""pack: writes a run's verified failures, with controls, as a folder that replays anywhere.

  python -m auditdm_jax pack --workdir=runs/first --output=packs/first --licence="CC BY 4.0"
  python -m auditdm_jax compare MODEL --pack=packs/first

The folder holds images, questions and the answers that the references agreed on; it needs neither
the run's models nor its image service. See docs/compare-and-packs.md.

Reads:  a run whose failures are verified.
Writes: --output: questions, answers, images.
Costs:  no model: each image is copied once.
"""

from absl import flags

from auditdm_jax.audit import pack as pack_lib
from auditdm_jax.core.config import UserError
from auditdm_jax.stages import packing, past

FLAGS = flags.FlagValues()
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "The folder of the run.", required=True, flag_values=FLAGS
)
_OUTPUT = flags.DEFINE_string(
  "output", None, "The folder of the pack, which is made.", required=True, flag_values=FLAGS
)
_FAILURES = flags.DEFINE_integer(
  "failures",
  2_000,
  "Verified failures at most, evenly over modes.",
  lower_bound=1,
  flag_values=FLAGS,
)
_CONTROLS = flags.DEFINE_integer(
  "controls",
  500,
  "Questions outside all modes, by which a model is seen to forget something.",
  lower_bound=0,
  flag_values=FLAGS,
)
_LICENCE = flags.DEFINE_string(
  "licence", "", "Of the images and questions, in your words.", flag_values=FLAGS
)


def main() -> int:
  """Writes the pack that the flags describe."""
  if _WORKDIR.value is None or _OUTPUT.value is None:
    raise UserError("pack needs --workdir and --output; see pack --help")
  with past.opened(_WORKDIR.value, "pack") as ctx:
    packed = packing.collect(
      ctx, failures=_FAILURES.value, controls=_CONTROLS.value, licence=_LICENCE.value
    )
    folder = pack_lib.write(_OUTPUT.value, packed)
  print(f"{folder}: {packing.told(packed.probes)} in {len(packed.header.modes)} modes")
  if not _LICENCE.value:
    print("its licence is not stated; --licence says it to who gets the pack")
  print(f"python -m auditdm_jax compare MODEL --pack={_OUTPUT.value}")
  return 0
