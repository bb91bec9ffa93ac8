# SPDX-License-Identifier: Apache-2.0
"""loop: rounds of AuditDM, each of which audits the target that the one before has repaired.

  0. preflight   whether these models can be audited as they are asked; what is wrong ends the run
  1. evaluate    what target, references and sibling can do
  2. train       the auditor, by GRPO
  3. discover    arms sweep the pool; the control asks random questions at equal total queries
  4. verify      gates, stability, the oracle; failure modes with fresh rates; the first report
  5. rectify     repair from the failures, next to its two controls; not of an endpoint
  6. re-audit    the known modes on fresh probes, and the auditor against the repaired target
  7. round 2 …   train, discover, verify, rectify and re-audit again, with the last auditor against
                 the last target; a round that finds nothing new is the last one
  8. report      the same pages again, with repairs and rounds; summary.json and a table

Every stage leaves a done.json; the same command run again continues where it stopped.

Reads:  the config, the models, the data set.
Writes: WORKDIR, with WORKDIR/report/index.html (docs/run-folder.md).
Costs:  all of its stages, see their helps; minutes for configs/scenes.py on two CPU cores. `plan`
        and `doctor` say more of larger ones.
"""

from collections.abc import Mapping, Sequence
import os
import pathlib

from ml_collections import ConfigDict

from auditdm_jax.audit import diversity
from auditdm_jax.audit.attempt import Attempt
from auditdm_jax.audit.summary import Kinds, Summary
from auditdm_jax.core import paths, runtime
from auditdm_jax.stages import (
  asking,
  bootstrap,
  discover,
  evaluate,
  grading,
  labelled,
  preflight,
  reaudit,
  rectify,
  report,
  rewording,
  screen,
  suite,
  trace,
  train,
  verify,
)
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.examples import Chosen, by_strategy
from auditdm_jax.stages.results import REPAIRED, Controlled, Empty, RepairedModel, Repairs, Searched
from auditdm_jax.stages.sections import REWARDED
from auditdm_jax.stages.summarise import nothing_new
from auditdm_jax.stages.truth import coverage, modes_of


def main(config: ConfigDict, workdir: pathlib.Path) -> int:
  with Context(config, workdir, "loop") as ctx:
    screen.show(run(ctx), ctx.folder.path, spent=ctx.spent())
  return 0


def run_loop(config: ConfigDict, workdir: str | os.PathLike[str]) -> Summary:
  """Runs the loop of a config, or continues it where it stopped.

  Example:
    config = load_config("configs/scenes.py", seed=1)
    summary = run_loop(config, "runs/first")
    print(summary.search.trained)

  Args:
    config: from `load_config`.
    workdir: the folder of the run, made if it is not there; gs://bucket/run on a pod.

  Returns:
    What the loop found, which is in summary.json too.

  Raises:
    UserError: the config or the folder is wrong.
  """
  runtime.setup()
  with runtime.together(), Context(config, paths.made(workdir), "loop") as ctx:
    return run(ctx)


def run(ctx: Context) -> Summary:
  """Runs all stages in order."""
  known = ctx.folder.summary()
  if ctx.folder.done("loop", Empty) is not None and known is not None:
    return known
  repairs = ctx.settings.rectify.enabled
  if repairs and not ctx.models.target_is_remote:
    rectify.check(ctx)
  rewording.check(ctx)
  ctx.pool("fresh")  # There must be one.
  ctx.stage("preflight", lambda: preflight.run(ctx))
  ctx.stage("evaluate", lambda: evaluate.run(ctx))
  trained = ctx.stage("train", lambda: train.run(ctx))
  ctx.stage("search", lambda: search(ctx))
  swept = ctx.stage("discover", lambda: discover.run(ctx))
  ctx.stage("random control", lambda: random_control(ctx, trained.completions + swept.queries))
  ctx.stage("verify", lambda: verify.run(ctx))
  ctx.stage("report", lambda: report.run(ctx))
  goes_on = repairs and (not ctx.settings.rounds.repairs(1) or repair_and_audit(ctx))
  for number in range(2, ctx.settings.rounds.count + 1):
    goes_on = goes_on and later_round(ctx, number)
  summary = ctx.stage("report", lambda: report.run(ctx))
  ctx.folder.finish("loop", Empty())
  return summary


def repair_and_audit(ctx: Context) -> bool:
  """Repairs the target of a round and says what that changed; returns whether it was repaired."""
  if ctx.settings.rectify.bootstraps and not ctx.models.target_is_remote:
    ctx.stage("bootstrap", lambda: bootstrap.run(ctx))
  repairs = ctx.stage("rectify", lambda: repair(ctx))
  if REPAIRED not in repairs.models:
    return False
  ctx.stage("re-audit", lambda: reaudit.run(ctx))
  return True


def later_round(ctx: Context, number: int) -> bool:
  """Runs a round on the repaired target; returns whether there is reason for another one."""
  with ctx.opened(number) as own:
    return ctx.stage(f"round {number}", lambda: _later_round(own))


def _later_round(ctx: Context) -> bool:
  ctx.stage("train", lambda: train.run(ctx))
  ctx.stage("discover", lambda: discover.run(ctx))
  ctx.stage("verify", lambda: verify.run(ctx))
  found = ctx.stage("trace", lambda: trace.run(ctx))
  number, config = ctx.round.number, ctx.settings.rounds
  # Finds that show no mode are mostly the references' own errors.
  repaired = config.repairs(number) and found.confirmed > 0 and repair_and_audit(ctx)
  if not found.new:
    print(f"  {nothing_new(number)}")
  return repaired and bool(found.new)


# ----------------------------------------------------------------------- stages of this file


def search(ctx: Context) -> Searched:
  """Measures search success before and after training: same images, same draws."""
  if (found := ctx.folder.done("search", Searched)) is not None:
    return found
  bank = ctx.models.bank()
  asker = asking.search_asker(ctx, bank)
  n, steps = ctx.settings.discover.search_probes, ctx.settings.optim.steps

  asked = {"prompt_only": asker.ask(None, n, arm="prompt_only", walk=asking.SEARCH)}
  if steps:
    asked["trained"] = asker.ask(steps, n, arm="trained", walk=asking.SEARCH)
  success = {arm: grading.success(ctx, found, bank=bank) for arm, found in asked.items()}
  kinds = _kinds(ctx, asked) if ctx.oracle.exists else {}
  return ctx.folder.finish(
    "search",
    Searched(
      success["prompt_only"],
      kinds.get("prompt_only"),
      success.get("trained"),
      kinds.get("trained"),
    ),
  )


def _kinds(ctx: Context, asked: Mapping[str, Sequence[Attempt]]) -> dict[str, Kinds]:
  confirmed = {arm: ctx.oracle.confirmed(attempts) for arm, attempts in asked.items()}
  varied = diversity.compared({arm: modes_of(found) for arm, found in confirmed.items()})
  return {arm: Kinds(varied.get(arm), coverage(found).per_gap) for arm, found in confirmed.items()}


def random_control(ctx: Context, audited: int) -> Controlled:
  """Asks random questions at the audit's total queries, GRPO's included; keeps them for repair."""
  if (found := ctx.folder.done(asking.CONTROL, Controlled)) is not None:
    return found
  config = ctx.settings
  more = config.rectify.unlabelled.probes if config.rectify.strategy.bootstrapped else 0
  attempts = asking.random_control(ctx, audited + more)
  ctx.folder.write_control(attempts)
  return ctx.folder.finish(asking.CONTROL, Controlled(len(attempts)))


def repair(ctx: Context) -> Repairs:
  """Repairs the target from the failures and from the controls; benchmarks each.

  A later round has no controls, and its examples go beside those of the rounds before.
  """
  known = ctx.folder.done("rectify", Repairs)
  if known is not None and known.tried:
    return known
  models = dict(known.models) if known is not None else {}
  if ctx.models.target_is_remote:
    print(f"  {ctx.models.target_name} is an endpoint: without its weights it is not repaired")
    return ctx.folder.finish("rectify", Repairs(models))
  failed, arms = {}, _arms(ctx)
  learned = [chosen.all for chosen in arms.values()]  # The first is the repaired target's.
  try:
    replay = (
      rectify.replay_examples(ctx, learned[0] or max(learned, key=len)) if any(learned) else []
    )
  except rectify.RepairFailed as e:
    print(f"  nothing is repaired: {e}")
    return ctx.folder.finish("rectify", Repairs(models, {REPAIRED: str(e)}))
  runtime.forget_programs()  # A repair is the fullest of all stages, and calls few of them.
  for name, chosen in arms.items():
    examples = chosen.all
    if not examples:
      print(f"  {name}: nothing to train on")
      continue
    ctx.folder.append_examples(name, examples)
    labels = labelled.label_precision(ctx, examples)
    print(f"  {name}: {evaluate.labels(len(examples), labels)}", flush=True)
    tune = rectify.repair_by_reward if name == REWARDED else rectify.repair
    try:
      model = ctx.models.answering(tune(ctx, name, examples, replay))
    except rectify.RepairFailed as e:
      print(f"  {name}: {e}", flush=True)
      failed[name] = str(e)
      continue
    table = suite.benchmark(ctx, model, ctx.folder.repaired(name), role=ctx.round.role(name))
    sources = {source: len(part) for source, part in chosen.examples.items()}
    models[name] = RepairedModel(table, len(examples), sources, labels, chosen.left_out)
    print(evaluate.line(name, table), flush=True)
  return ctx.folder.finish("rectify", Repairs(models, failed))


def _arms(ctx: Context) -> dict[str, Chosen]:
  """Returns what each model is trained on, by its name; the repaired target is the first."""
  config, repaired = ctx.settings.rectify, rectify.to_learn(ctx)
  if not ctx.round.is_first:
    return {REPAIRED: repaired}
  beside = {name: by_strategy(ctx, s) for name, s in config.beside.items()}
  if config.answering.optim.steps:
    beside[REWARDED] = repaired
  return {REPAIRED: repaired, **rectify.controls(ctx, repaired), **beside}
