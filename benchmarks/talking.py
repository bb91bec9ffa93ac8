# SPDX-License-Identifier: Apache-2.0
"""What answer styles and the judge are worth where models talk: GRPO in the scenes world, thrice.

COMMAND
  python -m benchmarks.talking --workdir=runs/talking [--arms=words,styled,raw] [--steps=80]
    [--target=easy|rare] [--seed=0]

  words    models answer in one word
  styled   they say the same in sentences, with synonyms, with letters, and refuse now and then;
           their style takes the short answer, and the judge compares it
  raw      they talk as well; what they say is compared as it is, without plurals, units and the
           world's synonyms

Trains what is not trained yet (a run that was stopped goes on) and prints for each arm, over parts
of the steps: the share of completions that were rewarded, and of all completions the real finds,
those of wording alone and others. All arms are measured by one yardstick, whatever their own rules
are. The short answers are taken from what was said, the judge compares these, and the oracle has
the truth:

  real     the references agree, the target conflicts, and the oracle sides with the references
  wording  the short answers of target and references mean the same: nothing but words differs
  other    all else, such as a consensus that is wrong

Then a table of the last tenth of the steps with 95 % intervals: consensus rate (by the rules of the
arm), search success (real finds among all completions) and precision (real finds among rewarded
ones).
"""

from collections import Counter
from collections.abc import Sequence
import pathlib

from absl import app, flags
from ml_collections import ConfigDict
import rich.console
import rich.table

from auditdm_jax.audit import rates
from auditdm_jax.audit.attempt import Attempt, Find, is_true
from auditdm_jax.audit.judge import Judge, JudgeConfig
from auditdm_jax.audit.probe import Verdict
from auditdm_jax.audit.rates import Rate
from auditdm_jax.audit.verdict import ConsensusRule, verdict
from auditdm_jax.stages import train
from auditdm_jax.stages.context import Context
from auditdm_jax.text import styles
from auditdm_jax.text.styles import RawReply
from benchmarks import own_flags
from configs import scenes

ARMS = ("words", "styled", "raw")
KINDS = ("real", "wording", "other")
JUDGE = Judge(JudgeConfig(synonyms=scenes.SYNONYMS))  # Of the yardstick.
_PARTS = 6  # Of the steps, in the first table.

_FLAGS = flags.FlagValues()
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "folder of the runs", required=True, flag_values=_FLAGS
)
_ARMS = flags.DEFINE_list("arms", list(ARMS), "arms, see above", flag_values=_FLAGS)
_STEPS = flags.DEFINE_integer("steps", 80, "of GRPO, each with 128 completions", flag_values=_FLAGS)
_TARGET = flags.DEFINE_enum(
  "target", "easy", ["easy", "rare"], "which target is audited", flag_values=_FLAGS
)
_SEED = flags.DEFINE_integer("seed", 0, "of everything that is drawn", flag_values=_FLAGS)


def config_of(arm: str, *, steps: int, target: str, seed: int, data: pathlib.Path) -> ConfigDict:
  """Returns the config of an arm; its images lie in `data`."""
  talk = "all" if arm == "styled" else "off"
  c = scenes.get_config(f"target={target},reward=plain,seed={seed},talk={talk}")
  values = {"pool.data_dir": str(data), "optim.steps": steps, "checkpoints.harvest": ()}
  if arm == "raw":
    models = c.to_dict()["models"]
    names = [pathlib.Path(folder).name for folder in (models["target"], *models["references"])]
    values["bank.styles"] = tuple((name, "plain") for name in names)
    values |= {"judge.plurals": False, "judge.units_optional": False}
  with c.unlocked():
    c.update_from_flattened_dict(values)
    if arm == "raw":
      c.update({"world": {"talk": scenes.VOICES["all"] | {"seed": seed}}})
  return c


def kind_of(find: Find, truth: str | None, *, abstentions: Sequence[str]) -> str:
  """Returns which of `KINDS` a find is, by the short answers in what was said."""
  judge, again = JUDGE, shortened(find.verdict, find.probe.question, abstentions)
  found = Attempt(probe=find.probe, verdict=again).find
  if found is None:
    return "wording" if again.reason == "agreement" else "other"
  return "real" if is_true(found, truth, judge) else "other"


def shortened(said: Verdict, question: str, abstentions: Sequence[str]) -> Verdict:
  """Returns the verdict on the short answers in what the models said."""
  answers = {}
  for name, answer in said.answers.items():
    short = styles.BARE.short(RawReply(said.raw.get(name, answer or ""), "stop"), question)
    answers[name] = abstentions[0] if short.kind == "abstention" else short.text or ""
  return verdict(
    said.probe_id,
    answers,
    JUDGE,
    target=said.target,
    references=said.references,
    rule=ConsensusRule(abstentions=tuple(abstentions)),
    question=question,
  )


def trained(arm: str, root: pathlib.Path) -> list[tuple[Attempt, str | None]]:
  """Trains an arm, or goes on with it; returns its completions with the kind of each find."""
  config = config_of(
    arm, steps=_STEPS.value, target=_TARGET.value, seed=_SEED.value, data=root / "data"
  )
  with Context(config, root / f"{_TARGET.value}-{arm}-{_SEED.value}", "talking") as ctx:
    train.run(ctx)
    ctx.pool("images")  # So that their images are found by id.
    rows = []
    for attempt in ctx.folder.completions():
      kind, find = None, attempt.find
      if find:
        truth = ctx.oracle.answer(find.probe.image_id, find.probe.question)
        kind = kind_of(find, truth, abstentions=ctx.settings.bank.abstentions)
      rows.append((attempt, kind))
  return rows


def split(rows: Sequence[tuple[Attempt, str | None]], start: int, stop: int) -> tuple[str, ...]:
  """Returns the cells of some steps: rewarded completions, and the share of each kind among all."""
  own = [kind for attempt, kind in rows if start <= attempt.probe.step < stop]
  counts = Counter(own)
  found = rates.rate(len(own) - counts[None], len(own))
  return (_text(found), *(f"{100 * counts[kind] / max(len(own), 1):.1f}" for kind in KINDS))


def outcome(rows: Sequence[tuple[Attempt, str | None]], start: int) -> tuple[Rate, Rate, Rate]:
  """Returns consensus rate, search success and precision from a step on."""
  own = [(attempt, kind) for attempt, kind in rows if attempt.probe.step >= start]
  asked = [attempt.verdict.agree for attempt, _ in own if attempt.verdict]
  finds = [kind for _, kind in own if kind]
  real = finds.count("real")
  return (
    rates.rate(sum(asked), len(asked)),
    rates.rate(real, len(own)),
    rates.rate(real, len(finds)),
  )


def _text(rate: Rate) -> str:
  if rate.rate is None:
    return "–, n = 0"
  low, high = (100 * x for x in rate.ci95)
  return f"{100 * rate.rate:.1f} [{low:.1f}, {high:.1f}] n={rate.n:,}"


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}")
  steps, root = _STEPS.value, pathlib.Path(_WORKDIR.value)
  console = rich.console.Console(width=130)
  title = f"target_{_TARGET.value}, seed {_SEED.value}"
  parts = rich.table.Table(title=f"Rewarded completions by step, %, {title}")
  ends = rich.table.Table(title=f"The last tenth of {steps} steps, %, {title}")
  for column in ("arm", "steps", "rewarded [95 %]", *KINDS):
    parts.add_column(column)
  for column in ("arm", "consensus", "search success", "precision"):
    ends.add_column(column)
  for arm in _ARMS.value:
    rows = trained(arm, root)
    edges = sorted({steps * i // _PARTS for i in range(_PARTS + 1)})
    for start, stop in zip(edges, edges[1:]):
      parts.add_row(arm, f"{start}–{stop - 1}", *split(rows, start, stop))
    parts.add_section()
    ends.add_row(arm, *map(_text, outcome(rows, steps * 9 // 10)))
  console.print(parts)
  console.print(ends)


if __name__ == "__main__":
  app.run(main, flags_parser=own_flags.parser(_FLAGS))
