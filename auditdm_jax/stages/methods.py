# SPDX-License-Identifier: Apache-2.0
"""What a report says of how it was measured, and of what was not."""

from collections import Counter
from collections.abc import Iterable

from auditdm_jax.audit.attempt import Failure
from auditdm_jax.audit.report import charts
from auditdm_jax.audit.summary import Summary
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.results import REPAIRED
from auditdm_jax.stages.summarise import Round

_FIND = (
  "The references agree on an answer that is no abstention, and the target says something else."
)
METHODS = (
  (
    "Finds that are real",
    "The consensus is right and the target wrong. Labelled questions are held-out ones (and those"
    " of the fresh split) whose answer the data set knows, put to all models without a look at what"
    " they say. Finds that were looked at stand for the others of their family of modes. From"
    " sensitivity (conflicts where the target is wrong) and specificity (agreement where it is"
    " right) follow corrected rates with Lang and Reiczigel's interval. They hold as far as the"
    " references err on the audit's questions as often as on the labelled ones; an auditor that is"
    " trained on conflicts looks for questions on which they err more.",
  ),
  (
    "Outside the ensemble (V2)",
    "The data set's own answer, a model that is neither target nor reference and answers the"
    " question itself, or the oracle of a drawn world has the answer of the consensus and not that"
    " of the target. It is used for reporting only, never as reward or label.",
  ),
  (
    "Confirmed finds",
    "Finds, before any gate, of which the oracle says that the consensus is true and the target"
    " wrong. Where there is no oracle, verified failures take their place.",
  ),
  (
    "Search success",
    "Confirmed finds or verified failures among all probes sent, malformed ones included.",
  ),
  (
    "Modes",
    "Rules over question, consensus and image whose failure rate among all attempted probes is"
    " raised. Each is tested again on fresh images and questions against those outside all modes;"
    " one that is too rare for that, on what its verified finds asked, about fresh images. One"
    " false discovery rate holds over the audit. Confirmed modes pass. Others have too few fresh"
    " probes, or do not pass.",
  ),
  (
    "Stability of a mode",
    "Modes are found again on 20 bootstrap samples of the images: the mean Jaccard index of a"
    " mode's members with those of the most similar mode. A mode below 0.5 is folded.",
  ),
)


def how(ctx: Context, summary: Summary, failures: Iterable[Failure]) -> list[tuple[str, str]]:
  """Returns how it was measured, term by term."""
  return [
    _find(summary),
    _verified(ctx, failures),
    *METHODS,
    *_people(summary),
    *_controls(summary),
  ]


def _find(summary: Summary) -> tuple[str, str]:
  """What a find is: of the sweep, it may have to return in other words."""
  if not summary.sweep or (returned := summary.sweep.returned) is None:
    return "Find", _FIND
  return "Find", (
    f"{_FIND} In the sweep it is asked once more in other words, and is no find if it does not"
    f" return: {charts.rate_text(returned)} did."
  )


def _people(summary: Summary) -> list[tuple[str, str]]:
  """How people labelled finds, if they did."""
  if summary.labels is None:
    return []
  text = (
    "Finds were drawn at random within strata of grade and mode. Raters saw image, question and the"
    " two answers in random order. A find is right if only the answer of the consensus is right."
    " Verified and right is V3; wrong falls to V0. Shares weigh each find by the inverse of its"
    f" chance to be drawn. {summary.labels.assumption}"
  )
  return [("Labelled by people (V3)", text)]


def _verified(ctx: Context, failures: Iterable[Failure]) -> tuple[str, str]:
  """How finds were verified: the trials that were made, not those that could have been."""
  kinds = {
    "greedy": "asked again",
    "paraphrase": "in another wording",
    "jitter": "on images changed a little",
  }
  trials = Counter(len(f.stability.trials) for f in failures if f.stability)
  made = {t.partition(":")[0] for f in failures if f.stability for t in f.stability.trials}
  tried = ", ".join(text for kind, text in kinds.items() if kind in made)
  each = ", ".join(f"{n} of {count:,} finds" for n, count in sorted(trials.items()))
  share = ctx.settings.verify.stable_share
  text = (
    "The find fails no gate that was measured, and shows again in at least"
    f" {share:.0%} of its trials. What could not be tried is not measured and counts for no grade."
  )
  if tried:
    text += f" Trials: {tried}; {each}. A model that always answers alike passes the first of them."
  return "Verified (V1)", text


def _controls(summary: Summary) -> list[tuple[str, str]]:
  """What the audit is compared with, at which number of queries."""
  asked, total = summary.queries.control_random, summary.queries.total
  if asked is None:
    return []
  text = f"{asked:,} random questions against {total:,} queries of the audit (GRPO's included)"
  if asked < total:
    text += "; the data set has no more, so the control is at a disadvantage"
  return [
    (
      "Controls",
      f"{text}; random questions with consensus at equal training examples, and"
      " failures mined from the random questions.",
    )
  ]


def not_measured(
  ctx: Context, done: Round, summary: Summary, failures: Iterable[Failure]
) -> list[tuple[str, str]]:
  """Returns what a reader may look for in vain, each with the reason."""
  steps, modes = ctx.settings.optim.steps, done.verified.modes
  unknown = sum(mode.fresh is None for mode in modes)
  rows = (
    (not steps, "A trained auditor", "config.optim.steps is 0: the auditor asked as it is"),
    (
      not ctx.oracle.exists,
      "Precision, coverage and effective modes",
      "there is no oracle of these images",
    ),
    (
      summary.find_precision is None,
      "How many finds are real",
      "no held-out or fresh question has an answer, and no person labelled finds (the stage label)",
    ),
    (
      not done.verified.sides,
      "A view from outside the ensemble (V2)",
      "no label of the data set and no model of config.verify.model answered a find's question",
    ),
    (
      not any(f.wordings for f in failures),
      "Stability over other wordings",
      "no question was reworded (config.verify.paraphrases, config.verify.paraphraser)",
    ),
    (
      summary.compared.not_looked_at > 0,
      "Part of the finds",
      f"{summary.compared.not_looked_at:,} are beyond config.verify.limit: shares of verified"
      " failures among probes are lower bounds",
    ),
    (
      unknown > 0,
      "Fresh rates of modes",
      f"no fresh probe falls under {unknown} of {len(modes)} modes",
    ),
    (
      done.verified.fresh is not None and done.verified.fresh.proposer == "nobody",
      "Whether modes hold",
      "there is no fresh split (config.pool.fresh), so that no mode is confirmed",
    ),
    (
      done.searched is None,
      "The auditor before against after training",
      "no search on equal images was done",
    ),
    (done.controlled is None, "A control of random questions at equal queries", "none were asked"),
    (
      done.evaluated is None,
      "Accuracy of the models, and health of the references",
      "the stage evaluate did not run; it needs questions whose answers are known",
    ),
    *_no_repair(ctx, done),
  )
  return [(what, why) for missing, what, why in rows if missing]


def _no_repair(ctx: Context, done: Round) -> list[tuple[bool, str, str]]:
  """Why there is no repaired target, and which further models could not be made."""
  repairs, what = done.repairs, "A repair of the target"
  if repairs is None or not repairs.tried:
    off = "config.rectify.enabled is False: the target was audited and not repaired"
    why = "the stage rectify did not run" if ctx.settings.rectify.enabled else off
    return [(True, what, why)]
  rows = [
    (True, what if name == REPAIRED else f"The model {name}", f"it failed: {why}")
    for name, why in repairs.failed.items()
  ]
  empty = REPAIRED not in repairs.models and not repairs.failed
  if empty and not ctx.models.target_is_remote:
    rows.append((True, what, "no failure was verified, so there was nothing to repair"))
  return rows
