# SPDX-License-Identifier: Apache-2.0
"""compare: says what a model lost and gained against another one, and fails if it lost something.

  python -m auditdm_jax compare MODEL --pack=packs/first
  python -m auditdm_jax compare OLD NEW --pack=packs/first
  python -m auditdm_jax compare runs/first runs/second
  python -m auditdm_jax compare MODEL --pack=packs/first --against_itself

MODEL, OLD and NEW are each a folder of weights, the folder of a run (its target), endpoint:NAME of
a config's endpoints, or endpoint:FILE.yaml with the keys of config.endpoints.NAME. With one model
and a pack, OLD is what the audit recorded. Without a pack OLD is a run, and both models answer its
fresh questions, and those of NEW if that is a run.

Writes ledger.md, ledger.json and junit.xml. Exits with 0 if nothing got worse, 1 if something is
new or regressed, 2 if the command or a file is wrong, and with --strict 3 if something is unsure.
See docs/compare-and-packs.md.

Reads:  models or runs, and the pack.
Writes: --output, by default compared/.
Costs:  an answer of each model to each probe; two of one model with --against_itself.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import tempfile

from absl import flags

from auditdm_jax.audit import compare as compare_lib
from auditdm_jax.audit import ledger as ledger_lib
from auditdm_jax.audit import pack as pack_lib
from auditdm_jax.audit.compare import CompareConfig, PairedOutcome
from auditdm_jax.audit.ledger import ChangedProbe, ComparedModel, Ledger
from auditdm_jax.audit.pack import Pack
from auditdm_jax.core import overrides
from auditdm_jax.core.config import UserError
from auditdm_jax.stages import past, replay
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.replay import Opener, ProbeSet

FLAGS = flags.FlagValues()
_PACK = flags.DEFINE_string("pack", None, "A pack, written by `pack`.", flag_values=FLAGS)
_OUTPUT = flags.DEFINE_string("output", "compared", "Where the ledger goes.", flag_values=FLAGS)
_STRICT = flags.DEFINE_bool(
  "strict", False, "Unsure is no success: exit code 3.", flag_values=FLAGS
)
_ITSELF = flags.DEFINE_bool(
  "against_itself",
  False,
  "Ask one model twice, about images that are shifted or dimmed a little: what changes is noise.",
  flag_values=FLAGS,
)
flags.DEFINE_alias("against-itself", "against_itself", flag_values=FLAGS)
_MARGIN = flags.DEFINE_float(
  "margin",
  CompareConfig().margin,
  "Largest change of a failure rate that is called unchanged.",
  lower_bound=0.0,
  upper_bound=1.0,
  flag_values=FLAGS,
)
_JUDGE = flags.DEFINE_string(
  "judge",
  "",
  "A model that says where the judge's rules do not whether two answers mean the same.",
  flag_values=FLAGS,
)
_CONFIG = overrides.define("A config whose endpoints are meant.", flag_values=FLAGS)
_DTYPE = flags.DEFINE_enum(
  "dtype", "float32", ["float32", "bfloat16"], "Of models in folders.", flag_values=FLAGS
)
_SEED = flags.DEFINE_integer("seed", 0, "Of --against_itself.", flag_values=FLAGS)


def main(words: Sequence[str]) -> int:
  """Compares what the words name."""
  _check(words)
  # Read before any model is loaded.
  packed = pack_lib.read(_PACK.value) if _PACK.value else None
  with contextlib.ExitStack() as stack:
    runs = {
      word: stack.enter_context(past.opened(word, "compare"))
      for word in dict.fromkeys(words)
      if replay.is_run(word)
    }
    opener = Opener(
      config=_CONFIG.value,
      runs=runs,
      answers=stack.enter_context(tempfile.TemporaryDirectory()),
      dtype=_DTYPE.value,
    )
    stack.callback(opener.close)
    opener.check(words)
    if packed is not None:
      probes = replay.from_pack(packed, where=f"pack {_PACK.value}")
    else:
      probes = replay.from_runs(runs[words[0]], runs.get(words[-1]))
    as_in = None if packed is not None else runs[words[0]]
    models = [_asked(opener, word, probes, as_in) for word in words]
    if packed is not None and _JUDGE.value:
      audited = {f"model {model.name}": model.identity for model in models}
      judge = opener.judge(packed.header.judge, _JUDGE.value, audited)
      probes = dataclasses.replace(probes, judge=judge)
    ledger = _ledger(probes, models, _notes(packed))
  ledger_lib.write(_OUTPUT.value, ledger, strict=_STRICT.value)
  print(ledger_lib.text(ledger))
  counts = compare_lib.summary_counts(ledger.comparison.counts())
  print(f"{counts}; {_OUTPUT.value}/ledger.md, ledger.json, junit.xml")
  return ledger.exit_code(strict=_STRICT.value)


def _check(words: Sequence[str]) -> None:
  """Checks what is named against what is asked for.

  Raises:
    UserError: too few or too many models, or no probes.
  """
  most = 1 if _ITSELF.value else 2
  if not 1 <= len(words) <= most:
    what = "one model" if _ITSELF.value else "one model or two, OLD NEW"
    raise UserError(f"compare takes {what}, not {len(words)}; see compare --help")
  if _PACK.value:
    return
  if _JUDGE.value:
    raise UserError("--judge is for packs; runs have judges of their own")
  if not replay.is_run(words[0]):
    raise UserError(
      f"{words[0]} is no folder of a run, so there are no questions to compare on; name a pack:"
      " --pack=DIR"
    )
  if len(words) < most:
    raise UserError(f"{words[0]} with what? Name a second model, or a pack: --pack=DIR")


@dataclasses.dataclass(frozen=True)
class _Answered:
  """A model and what it said to each probe, in each round."""

  name: str
  identity: str
  said: tuple[list[str], ...]


def _asked(opener: Opener, word: str, probes: ProbeSet, as_in: Context | None) -> _Answered:
  """Opens a model, asks it, and lets go of it: the next one may need its memory."""
  opened = opener.open(word, style=probes.style, as_in=as_in)
  rounds = replay.two_jitters(probes, seed=_SEED.value) if _ITSELF.value else (None,)
  said = tuple(replay.answers(opened.model, probes, jitter=jitter) for jitter in rounds)
  return _Answered(opened.name, opened.identity, said)


def _notes(packed: Pack | None) -> list[str]:
  notes = []
  if packed is not None:
    if packed.header.judge_model and not _JUDGE.value:
      notes.append(
        f"the audit's judge asked the model {packed.header.judge_model} too; here its rules alone"
        " decide, which take synonyms for other answers; --judge=MODEL"
      )
    if packed.header.judge_rules:
      notes.append(
        f"the audit's judge went by rules of its own, {packed.header.judge_rules}; here the"
        " package's decide"
      )
    notes.append(
      "the failures were chosen because the audited model fails them: against it a model can only"
      " gain in their modes, and one that was repaired with them has seen them before; the controls"
      " were chosen whatever it said"
    )
  if _ITSELF.value:
    notes.append("one model, asked twice about images that were shifted or dimmed a little")
  return notes


def _ledger(probes: ProbeSet, models: Sequence[_Answered], notes: Sequence[str]) -> Ledger:
  """Compares the last model with the first one, or with what is known of the target."""
  new = models[-1]
  now = new.said[-1]
  if _ITSELF.value or len(models) > 1:
    before, was = models[0].said[0], (models[0].name, models[0].identity, True)
  else:
    before, was = [row.said for row in probes.rows], (*probes.target, False)
  sides = (was, (new.name, new.identity, True))
  old_side, new_side = (
    ComparedModel(*side, unanswered=sum(not text for text in said))
    for side, said in zip(sides, (before, now), strict=True)
  )
  outcomes = _outcomes(probes, before, now)
  if not outcomes:
    raise UserError(
      f"none of the {len(probes.rows)} questions can be compared: {new_side.name} gave no answer to"
      f" {new_side.unanswered}, {old_side.name} to {old_side.unanswered}; the judge is undecided"
      " about the rest"
    )
  config = dataclasses.replace(CompareConfig(), margin=_MARGIN.value)
  return Ledger(
    old=old_side,
    new=new_side,
    comparison=compare_lib.compare(outcomes, known=probes.known, config=config),
    names=probes.names,
    changes=_changes(probes, outcomes, before, now),
    probes=probes.where,
    left_out=len(probes.rows) - len({o.probe_id for o in outcomes}),
    notes=notes,
  )


def _outcomes(probes: ProbeSet, before: Sequence[str], now: Sequence[str]) -> list[PairedOutcome]:
  """Who failed what, in each line of the ledger that a probe belongs to."""
  rows = [
    (group, row, a, b)
    for row, a, b in zip(probes.rows, before, now, strict=True)
    for group in row.groups
  ]
  return compare_lib.pairs(
    [group for group, *_ in rows],
    [row.probe_id for _, row, *_ in rows],
    [row.unit for _, row, *_ in rows],
    [row.expected for _, row, *_ in rows],
    [a for *_, a, _ in rows],
    [b for *_, b in rows],
    judge=probes.judge,
    questions=[row.question for _, row, *_ in rows],
  )


def _changes(
  probes: ProbeSet, outcomes: Sequence[PairedOutcome], before: Sequence[str], now: Sequence[str]
) -> list[ChangedProbe]:
  """The probes that only one model fails."""
  rows = {row.probe_id: (row, a, b) for row, a, b in zip(probes.rows, before, now, strict=True)}
  found = []
  for outcome in outcomes:
    if outcome.old_failed != outcome.new_failed and outcome.mode_id != pack_lib.TOGETHER:
      row, a, b = rows[outcome.probe_id]
      found.append(
        ChangedProbe(
          mode_id=outcome.mode_id,
          probe_id=row.probe_id,
          image_id=row.image_id,
          question=row.question,
          expected=row.expected,
          old=a,
          new=b,
          worse=outcome.new_failed,
        )
      )
  return found
