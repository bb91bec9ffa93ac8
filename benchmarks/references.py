# SPDX-License-Identifier: Apache-2.0
"""What an audit is worth when its references err: the scenes loop over their quality.

COMMAND
  python -m benchmarks.references --workdir=runs/references [--accuracy=0.6,0.75,0.9,0.995]
    [--phi=0,0.3,0.7] [--steps=0] [--probes=2400] [--labelled=2000]
    [--lasting] [--repair] [--seed=0]
  python -m benchmarks.references --weak --workdir=runs/weak

The target is target_easy. Its two references are right about 99.5 % of the questions and give
wrong answers on purpose until they have the accuracy asked for (`scenes.noise`). phi is the
correlation of their errors; errors in common are the same wrong answer. With `--lasting` errors
depend on a question's meaning instead of on pixels and wording, so that trials on other images and
in other words show them too. With `--steps=0` the auditor is not trained, with more it learns from
these references. Runs what is not run yet (a run that was stopped goes on) and prints by cell:

  consensus   share of the audit's questions on which the references agree
  V0 V1 V2    finds that are real, by the oracle: all, verified, and with a model outside the
              ensemble (the sibling, which is right about 87 %) on the side of the consensus
  by labels   the same as V0 as a user without an oracle sees it: on held-out questions with labels
  lost        real finds that verification rejects
  modes       modes that the oracle bears out
  corrected   share of the audit's questions with a consensus on which the target is wrong, from its
              conflicts and the labels; `oracle` is the truth
  repaired    accuracy on the planted gaps after repair, with `--repair`

`--weak` audits a good target (ref_gemma3) with two references that are worse than it (target_easy,
sibling), without an oracle, on a folder of images whose held-out questions have labels. Nearly all
conflicts are the references' fault, and the report says so first.
"""

from collections.abc import Sequence
import dataclasses
import json
import pathlib

from absl import app, flags
from ml_collections import ConfigDict
from PIL import Image
import rich.console
import rich.table

from auditdm_jax.audit import precision, rates
from auditdm_jax.audit.outside import TrueAnswers
from auditdm_jax.audit.rates import Corrected, Rate
from auditdm_jax.core import jsonio, typed
from auditdm_jax.scenes.mix import Mix
from auditdm_jax.stages import discover, evaluate, report, screen, train, verify
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.loop import repair
from benchmarks import own_flags
from configs import scenes

OWN = 0.995  # What the references of the scenes world know.
_IMAGES = {"train": 300, "heldout": 250}  # Of the folder with weak references, 8 questions each.

_FLAGS = flags.FlagValues()
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "folder of the runs", required=True, flag_values=_FLAGS
)
_ACCURACY = flags.DEFINE_list(
  "accuracy", ["0.6", "0.75", "0.9", "0.995"], "of each reference", flag_values=_FLAGS
)
_PHI = flags.DEFINE_list("phi", ["0", "0.3", "0.7"], "of the errors", flag_values=_FLAGS)
_STEPS = flags.DEFINE_integer("steps", 0, "of GRPO, each with 128 completions", flag_values=_FLAGS)
_PROBES = flags.DEFINE_integer("probes", 2400, "of the sweep", flag_values=_FLAGS)
_LABELLED = flags.DEFINE_integer(
  "labelled", 2000, "held-out questions with labels", flag_values=_FLAGS
)
_SEED = flags.DEFINE_integer("seed", 0, "of everything that is drawn", flag_values=_FLAGS)
_LASTING = flags.DEFINE_bool("lasting", False, "see above", flag_values=_FLAGS)
_REPAIR = flags.DEFINE_bool("repair", False, "repair the target, too", flag_values=_FLAGS)
_WEAK = flags.DEFINE_bool("weak", False, "see above", flag_values=_FLAGS)


@dataclasses.dataclass(frozen=True)
class Cell:
  """An audit with references of some quality; None is what was not measured."""

  accuracy: float
  phi: float
  consensus: Rate
  finds: Rate | None
  verified: Rate | None
  outside: Rate | None
  labels: Rate | None
  lost: Rate | None
  modes: Rate | None
  corrected: Corrected | None
  oracle: Rate
  repaired: Rate | None = None


def config_of(accuracy: float, phi: float, *, data: pathlib.Path) -> ConfigDict:
  """Returns the config of a cell; its images lie in `data`."""
  c = scenes.get_config(f"target=easy,seed={_SEED.value}")
  values = {
    "pool.data_dir": str(data),
    "optim.steps": _STEPS.value,
    "checkpoints.harvest": (),
    "discover.probes": _PROBES.value,
    "discover.batch": min(480, _PROBES.value),
    "verify.model": c.models.sibling,
    "verify.labelled": _LABELLED.value,
    "rectify.recipe.steps": 300,
  }
  with c.unlocked():
    c.update_from_flattened_dict(values)
    c.rollout.prompts = {"question": 16}  # No made images.
    c.preflight = {"enabled": False}
    if accuracy < OWN:
      noise = {"accuracy": accuracy / OWN, "phi": phi, "lasting": _LASTING.value}
      c.world.noise = noise | {"seed": _SEED.value}
  return c


def audited(accuracy: float, phi: float, root: pathlib.Path) -> Cell:
  """Runs a cell, or goes on with it."""
  kind = "lasting" if _LASTING.value else "passing"
  name = f"{kind}-{accuracy:g}-{phi:g}-{_STEPS.value}-{_PROBES.value}-{_SEED.value}"
  known = root / name / ("repaired.json" if _REPAIR.value else "cell.json")
  if known.exists():
    return typed.load(Cell, jsonio.read_json(known))
  with Context(config_of(accuracy, phi, data=root / "data"), root / name, "references") as ctx:
    train.run(ctx)
    discover.run(ctx)
    verify.run(ctx)
    cell = _cell(ctx, accuracy, phi)
    if _REPAIR.value:
      evaluate.run(ctx)
      models = repair(ctx).models
      gaps = models["repaired"].table["gaps"] if "repaired" in models else None
      cell = dataclasses.replace(cell, repaired=gaps)
  jsonio.write_json(known, cell)
  return cell


def _cell(ctx: Context, accuracy: float, phi: float) -> Cell:
  summary = report.run(ctx)
  by = {g.by: g for g in summary.grades}
  grades = by.get("oracle")
  attempts = {a.probe.probe_id: a for a in ctx.folder.attempts() if a.verdict}.values()
  known, _ = precision.known_probes(list(attempts), TrueAnswers(ctx.oracle.answer), ctx.judge)
  agree = [bool(a.verdict and a.verdict.agree) for a in attempts]
  return Cell(
    accuracy=accuracy,
    phi=phi,
    consensus=rates.rate_by_image(agree, [a.probe.origin_id for a in attempts]),
    finds=grades and grades.finds,
    verified=grades and grades.verified,
    outside=grades and grades.outside.get("model sibling"),
    labels=summary.find_precision and summary.find_precision.real,
    lost=grades and grades.lost,
    modes=summary.modes.precision,
    corrected=summary.corrected,
    oracle=rates.rate_by_image([p.target_wrong for p in known], [p.image for p in known]),
  )


def weak(root: pathlib.Path) -> None:
  """Audits a good target with references that are worse, and prints what the user sees."""
  for seed, (split, images) in enumerate(_IMAGES.items()):
    _write_images(root / "data/own" / split, images=images, seed=seed)
  c = scenes.get_config(f"seed={_SEED.value}")
  values = {
    "pool.builder": "", "pool.data_dir": str(root / "data"), "pool.dataset": "own",
    "pool.images": "train", "pool.heldout": "heldout", "pool.fresh": "",
    "world.name": "", "world.gaps": "",
    "models.target": f"{scenes.WEIGHTS}/ref_gemma3",
    "models.references": (f"{scenes.WEIGHTS}/target_easy", f"{scenes.WEIGHTS}/sibling"),
    "optim.steps": 0, "checkpoints.harvest": (), "discover.probes": _PROBES.value,
    "verify.labelled": _LABELLED.value,
  }  # fmt: skip
  with c.unlocked():
    c.update_from_flattened_dict(values)
  with Context(c, root / "run", "references") as ctx:
    train.run(ctx)
    discover.run(ctx)
    verify.run(ctx)
    screen.show(report.run(ctx), ctx.folder.path, spent=ctx.spent())


def _write_images(folder: pathlib.Path, *, images: int, seed: int) -> None:
  """Writes drawn images with eight questions each and their answers, unless they are there."""
  if (folder / "questions.jsonl").exists():
    return
  folder.mkdir(parents=True, exist_ok=True)
  mix = Mix(seed=seed, scenes=1000, images=images, per_image=8)
  draw = mix.draw(0)
  for i in set(draw.image.tolist()):
    Image.fromarray(mix.pixels(i, i + 1)[0]).save(folder / f"{i:03d}.png")
  rows = [
    {"image": f"{i:03d}.png", "question": question, "answer": answer}
    for i, question, answer in zip(draw.image.tolist(), draw.texts, draw.answers, strict=True)
  ]
  (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _text(found: Rate | Corrected | None) -> str:
  if found is None:
    return "–"
  if found.rate is None:
    return "cannot judge" if isinstance(found, Corrected) else "–, n = 0"
  low, high = (100 * x for x in found.ci95)
  n = f" n={found.n:,}" if isinstance(found, Rate) else ""
  return f"{100 * found.rate:.1f} [{low:.1f}, {high:.1f}]{n}"


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}")
  root = pathlib.Path(_WORKDIR.value)
  if _WEAK.value:
    weak(root)
    return
  columns = ("consensus", "finds", "verified", "outside", "labels", "lost", "modes", "corrected",
             "oracle", "repaired")  # fmt: skip
  titles = ("accuracy", "phi", "consensus", "V0", "V1", "V2", "by labels", "lost", "modes",
            "corrected", "oracle", "repaired")  # fmt: skip
  table = rich.table.Table(title=f"target_easy, {_STEPS.value} steps of GRPO, % [95 %]")
  for title in titles[: len(titles) if _REPAIR.value else -1]:
    table.add_column(title)
  for accuracy in map(float, _ACCURACY.value):
    for phi in map(float, _PHI.value if accuracy < OWN else _PHI.value[:1]):
      cell = audited(accuracy, phi, root)
      texts = [_text(vars(cell)[name]) for name in columns]
      print(f"{accuracy:g} {phi:g}: " + ", ".join(map(" ".join, zip(columns, texts))), flush=True)
      shown = f"{phi:g}" if accuracy < OWN else "–"
      table.add_row(f"{accuracy:g}", shown, *texts[: len(texts) if _REPAIR.value else -1])
  rich.console.Console(width=230).print(table)


if __name__ == "__main__":
  app.run(main, flags_parser=own_flags.parser(_FLAGS))
