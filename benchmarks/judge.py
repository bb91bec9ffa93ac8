# SPDX-License-Identifier: Apache-2.0
"""How often the judge is right on the labelled pairs of data/judge.

COMMAND
  python -m benchmarks.judge [--judge=DIR] [--error=0.1] [--seed=0] [--synonyms=FILE] [--list]

Prints sensitivity (pairs that mean the same and are called so) and specificity (pairs that differ
and are called so), with 95 % Wilson intervals, for the rules alone, with a model that is always
right, with one that is wrong in a share of its replies, and with the model of a folder. An
undecided pair counts as missed on either side, and is counted beside it. --list prints the pairs
that were not called what they are.
"""

from collections.abc import Sequence
import dataclasses
import json
import pathlib

from absl import app, flags
import rich.console
import rich.markup
import rich.table

from auditdm_jax.audit import rates
from auditdm_jax.audit.judge import Judge, JudgeConfig, Same, open_judge
from auditdm_jax.audit.judging.model import TextModel
from auditdm_jax.audit.judging.simulated import SimulatedModel
from auditdm_jax.audit.rates import Rate
from auditdm_jax.core.config import UserError
from auditdm_jax.models import weights
from auditdm_jax.vlm import load_vlm

PAIRS = pathlib.Path(__file__).parent.parent / "data/judge/pairs.jsonl"

_JUDGE = flags.DEFINE_string("judge", "", "folder of a model that judges")
_ERROR = flags.DEFINE_float("error", 0.1, "share of wrong replies of the simulated model", 0, 1)
_SEED = flags.DEFINE_integer("seed", 0, "of the simulated model's errors")
_SYNONYMS = flags.DEFINE_string("synonyms", "", "a table of synonyms in addition to the package's")
_LIST = flags.DEFINE_bool("list", False, "print the pairs that were not called what they are")


@dataclasses.dataclass(frozen=True)
class LabelledPair:
  """Two answers to a question, and whether they mean the same; see data/judge/README.md."""

  id: str
  kind: str
  question: str
  a: str
  b: str
  same: bool
  half: str


def read_pairs(path: pathlib.Path = PAIRS) -> list[LabelledPair]:
  with open(path, encoding="utf-8") as f:
    return [LabelledPair(**json.loads(line)) for line in f]


def simulated(pairs: Sequence[LabelledPair], *, error: float, seed: int = 0) -> SimulatedModel:
  """A model that knows the labels, and says the opposite in a share of its replies."""
  normalize = Judge().normalize
  truth = {(p.question, frozenset(map(normalize, (p.a, p.b)))): p.same for p in pairs}
  return SimulatedModel(
    lambda question, a, b: truth[question, frozenset((a, b))], error=error, seed=seed
  )


def outcomes(judge: Judge, pairs: Sequence[LabelledPair]) -> list[Same]:
  return judge.compare_all((p.question, p.a, p.b) for p in pairs)


def summary(pairs: Sequence[LabelledPair], found: Sequence[Same]) -> dict[str, dict]:
  """The three rates, each as `rates.rate` gives it."""
  alike = [f for p, f in zip(pairs, found) if p.same]
  other = [f for p, f in zip(pairs, found) if not p.same]
  return {
    "sensitivity": rates.rate(alike.count(Same.SAME), len(alike)),
    "specificity": rates.rate(other.count(Same.DIFFERENT), len(other)),
    "called same": rates.rate(other.count(Same.SAME), len(other)),
    "undecided": rates.rate(found.count(Same.UNDECIDED), len(found)),
  }


def _judges(pairs: Sequence[LabelledPair]) -> dict[str, Judge]:
  config = JudgeConfig(synonyms=_SYNONYMS.value)

  def asking(model: TextModel, identity: str) -> Judge:
    return open_judge(config, model=model, identity=identity)

  wrong = simulated(pairs, error=_ERROR.value, seed=_SEED.value)
  judges = {
    "rules": Judge(config),
    "rules + a model always right": asking(simulated(pairs, error=0), "right"),
    f"rules + a model wrong in {_ERROR.value:.0%}": asking(wrong, "wrong"),
  }
  if _JUDGE.value:
    identity = weights.content_hash(_JUDGE.value)
    judges[f"rules + {_JUDGE.value}"] = asking(load_vlm(_JUDGE.value), identity)
  return judges


def _cell(row: Rate) -> str:
  low, high = row.ci95
  return f"{row.value:.3f} [{low:.3f}, {high:.3f}] {row.k}/{row.n}"


def main(_: list[str]) -> None:
  console = rich.console.Console(width=160)
  pairs = read_pairs()
  halves = {"all": pairs} | {
    half: [p for p in pairs if p.half == half] for half in ("tuned", "heldout")
  }
  columns = ("judge", "pairs", "sensitivity", "specificity", "called same", "undecided")
  table = rich.table.Table(*columns, title=f"{len(pairs)} labelled pairs")
  for name, judge in _judges(pairs).items():
    for half, some in halves.items():
      row = summary(some, outcomes(judge, some))
      table.add_row(rich.markup.escape(name), half, *(_cell(row[c]) for c in columns[2:]))
    if _LIST.value:
      for p, found in zip(pairs, outcomes(judge, pairs)):
        if found is not (Same.SAME if p.same else Same.DIFFERENT):
          print(f"{name}: {p.id} {found.value}: {p.question} {p.a!r} {p.b!r}")
  console.print(table)


if __name__ == "__main__":
  try:
    app.run(main)
  except UserError as e:
    raise SystemExit(f"benchmarks.judge: {e}") from e
