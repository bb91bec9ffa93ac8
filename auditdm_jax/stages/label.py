# SPDX-License-Identifier: Apache-2.0
"""label: draws finds for people to label, and reads their labels.

  python -m auditdm_jax label --workdir=runs/first --n=200
  python -m auditdm_jax label --workdir=runs/first --read=labels-ann.json --read=labels-bob.json

The first form draws a random sample, stratified by mode and grade, and writes a page that opens
from a file and label.csv. A rater says of each find which of two answers is right, without being
told whose they are. Called again with a larger --n, it adds to the sample. The second form stores
what the files say and prints what follows; run `report` again to have it on its pages. See
docs/labels.md.

Reads:  WORKDIR/verify and the images; with --read, files of raters.
Writes: WORKDIR/labels.
Costs:  no model: seconds, and the time of people.
"""

import pathlib

from absl import flags

from auditdm_jax.audit import label_files, sampling
from auditdm_jax.audit import labels as labels_lib
from auditdm_jax.audit.attempt import Failure
from auditdm_jax.audit.labels import Label, LabelScores
from auditdm_jax.audit.rates import Rate
from auditdm_jax.audit.report import label_page
from auditdm_jax.audit.report.label_page import Shown
from auditdm_jax.audit.sampling import Sampled
from auditdm_jax.core import paths
from auditdm_jax.core.config import UserError
from auditdm_jax.stages import past
from auditdm_jax.stages.context import Context

FLAGS = flags.FlagValues()
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "The folder of the run.", required=True, flag_values=FLAGS
)
_N = flags.DEFINE_integer("n", 200, "Finds to label, in all.", lower_bound=10, flag_values=FLAGS)
_RATER = flags.DEFINE_string(
  "rater", None, "Who labels, or who labelled the files that are read.", flag_values=FLAGS
)
_READ = flags.DEFINE_multi_string("read", [], "A file that a rater saved.", flag_values=FLAGS)


def main() -> int:
  """Draws or reads, as the flags say."""
  if _WORKDIR.value is None:
    raise UserError("label needs --workdir; see label --help")
  if paths.is_remote(_WORKDIR.value):
    raise UserError(f"--workdir={_WORKDIR.value}: label needs a folder of this machine")
  if _RATER.value is not None:
    label_files.check_rater(_RATER.value, "--rater")
  with past.opened(_WORKDIR.value, "label") as ctx:
    if _READ.value:
      _read(ctx)
    else:
      _draw(ctx)
  return 0


def _draw(ctx: Context) -> None:
  """Draws what is missing of the sample, and writes its page."""
  failures, earlier = list(ctx.folder.graded()), ctx.folder.sample()
  if not failures:
    raise UserError(f"{ctx.folder.path}: there is no find to label")
  new = sampling.draw(failures, n=_N.value, seed=ctx.settings.seed, earlier=earlier)
  ctx.folder.append_sample(new)
  sample = [*earlier, *new]
  ctx.pool("images")  # Where images are found by id.
  by_key = {f.probe.probe_id: f for f in failures}
  page = label_page.write(
    ctx.folder.path / "labels" / "page",
    [_shown(ctx, by_key[row.key], row) for row in sample],
    sample=label_files.sample_id(sample),
    rater=_RATER.value or "",
  )
  strata = len({row.stratum for row in sample})
  print(f"{len(sample)} of {len(failures)} finds, drawn from {strata} strata")
  if len(sample) > _N.value:
    print(f"{len(sample)} were drawn before; a sample does not shrink to --n={_N.value}")
  print(f"page: {page}\ntable: {page.parent / 'label.csv'}")
  print(f"then: python -m auditdm_jax label --workdir={_WORKDIR.value} --read=FILE")


def _shown(ctx: Context, failure: Failure, row: Sampled) -> Shown:
  said = {"consensus": failure.consensus, "target": failure.said}
  second = "target" if row.first == "consensus" else "consensus"
  image = ctx.folder.images.put(ctx.images(failure.probe.image_id))
  return Shown(
    key=row.key,
    image=pathlib.Path(ctx.folder.images.path(image)),
    question=failure.probe.question,
    first=said[row.first],
    second=said[second],
  )


def _read(ctx: Context) -> None:
  """Stores the labels of files, all of them or none, and prints what all labels say."""
  sample = ctx.folder.sample()
  if not sample:
    raise UserError(f"{ctx.folder.path}: no find was drawn; run label without --read first")
  found: list[Label] = []
  for path in _READ.value:
    found += label_files.read(path, sample, rater=_RATER.value)
  ctx.folder.append_labels(found)
  scores = labels_lib.score(ctx.folder.graded(), sample, ctx.folder.labels())
  if scores is not None:
    print(told(scores))
  print("run `report` again to have it in summary.json and on the pages")


def told(scores: LabelScores) -> str:
  """Returns the lines for a terminal."""
  raters = ", ".join(f"{name} {n}" for name, n in scores.raters.items())
  lines = [
    f"{scores.labelled} of {scores.sampled} finds labelled ({raters}), {scores.unclear} undecided",
    f"right, of all finds         {_rate(scores.finds)}",
    f"right, of verified finds    {_rate(scores.verified)}",
    f"right, of the others        {_rate(scores.rejected)}",
    scores.assumption,
  ]
  for a in scores.agreement:
    kappa = (
      "not defined" if a.kappa is None else f"{a.kappa:.2f} [{a.ci95[0]:.2f}, {a.ci95[1]:.2f}]"
    )
    lines.append(f"{a.raters[0]} and {a.raters[1]}: n = {a.n}, Cohen's kappa {kappa}")
  return "\n".join(lines)


def _rate(rate: Rate) -> str:
  if rate.rate is None:
    return "-  n = 0"
  low, high = rate.ci95
  return f"{rate.rate:.1%} [{low:.1%}, {high:.1%}]  n = {rate.n}, {rate.images} images"
