# SPDX-License-Identifier: Apache-2.0
"""repro: asks one failure of a run again, and says whether it still is one.

  python -m auditdm_jax repro 3fa2 --workdir=runs/first

ID is that of the failure's card in the report, or its first digits. Target and references answer
the question and the trials of its verification: other wordings, an image changed a little, a grey
one. All answers are printed, the expected one first. Exits with 0 if the target still contradicts
the same consensus, and with 1 if it does not.

Reads:  a run whose failures are verified.
Writes: the image into WORKDIR/images, and a note into WORKDIR/manifest.json.
Costs:  loading target and references, then about ten answers of each.
"""

from collections.abc import Sequence

from absl import flags

from auditdm_jax.audit import verify as verify_lib
from auditdm_jax.audit.attempt import Failure
from auditdm_jax.audit.ledger import shown
from auditdm_jax.audit.verdict import unsure_of
from auditdm_jax.audit.verify import Retried
from auditdm_jax.core.config import UserError
from auditdm_jax.stages import past
from auditdm_jax.stages.context import Context

FLAGS = flags.FlagValues()
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "The folder of the run.", required=True, flag_values=FLAGS
)


def main(words: Sequence[str]) -> int:
  """Asks the failure again whose id is given."""
  if len(words) != 1 or _WORKDIR.value is None:
    raise UserError("repro takes one ID and --workdir; see repro --help")
  with past.opened(_WORKDIR.value, "repro") as ctx:
    failure = past.failure(ctx, words[0])
    ctx.pool("images")  # Where images are found by id.
    bank = ctx.models.bank()
    again = verify_lib.retry(
      [failure],
      bank,
      images=ctx.images,
      paraphrase=lambda _, k: failure.wordings[k - 1] if k <= len(failure.wordings) else None,
      config=ctx.settings.verify,
    )[0]
    print(_told(ctx, failure, again, (bank.target, *bank.references)))
  shows = "greedy:0=1" in again.stability.trials
  print("reproduced" if shows else "not reproduced")
  return 0 if shows else 1


def _told(ctx: Context, failure: Failure, again: Retried, models: Sequence[str]) -> str:
  """All that was said, a line for each model and trial."""
  probe, now = failure.probe, again.stability
  outcomes = {label: again for label, _, again in (t.rpartition("=") for t in now.trials)}
  lines = [
    f"failure   {probe.probe_id}  {failure.grade}  {failure.mode_id or 'of no mode'}",
    f"question  {shown(probe.question)}",
    f"image     {ctx.images.made.path(ctx.images.put(ctx.images(probe.image_id)))}",
    f"expected  {shown(failure.consensus)}",
    f"it said   {shown(failure.said)}",
  ]
  for label, question, verdict in again.trials:
    told = {"1": "the same conflict", "0": "no such conflict"}.get(outcomes.get(label, ""), "")
    lines.append(f"{label}  {told}".rstrip())
    if question != probe.question:
      lines.append(f"  question  {shown(question)}")
    unsure = unsure_of(verdict.kinds)
    for name in models:
      said = shown(verdict.answers[name] or "") or "(no answer)"
      lines.append(f"  {shown(name)}: {said}{' (not sure)' if name in unsure else ''}")
  then = failure.stability
  before = f", {then.k} of {then.n} then" if then else ""
  lines.append(f"shows in {now.k} of {now.n} trials{before}")
  return "\n".join(lines)
