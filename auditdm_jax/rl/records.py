# SPDX-License-Identifier: Apache-2.0
"""What is written down of a step: one record per completion, and numbers that diagnose a run."""

from collections.abc import Iterable, Sequence
import dataclasses
import itertools
import math
from typing import Any

import numpy as np

from auditdm_jax.audit.attempt import Attempt
from auditdm_jax.audit.judge import Judge, Same
from auditdm_jax.audit.probe import Probe, Verdict
from auditdm_jax.rl import grpo as grpo_lib
from auditdm_jax.rl.batch import Trajectory


def attempt_of(trajectory: Trajectory, *, arm: str = "", step: int = 0) -> Attempt:
  """Returns what a trajectory attempted.

  Args:
    trajectory: the sample; without an image of its own it is about its source.
    arm: who asks.
    step: updates that its auditor has had.
  """
  t = trajectory
  probe = Probe.make(
    t.image_id or t.source_image_id,
    t.question,
    strategy=t.strategy,
    arm=arm,
    source_image_id=t.source_image_id,
    instruction=t.fields.get("instruction"),
    caption=t.fields.get("caption"),
    seed=t.image_seed,
    fit=t.fit,
    step=step,
  )
  return Attempt(probe=probe, verdict=t.verdict)


def completion(
  trajectory: Trajectory,
  *,
  arm: str,
  step: int,
  advantage: float,
  truth: bool | None,
  full: bool,
) -> dict[str, Any]:
  """Returns the record of one trajectory: its attempt, and what training knows besides.

  `reward` is None where it is invalid, `oracle_success` without an oracle. `full` says that all
  models were to be asked whatever the first ones say. `pick` is None where all samples are asked.
  """
  t = trajectory
  return attempt_of(t, arm=arm, step=step).to_dict() | {
    "step": step,
    "prompt_id": t.prompt_id,
    "sample": t.sample,
    "pick": None if t.pick is None else dataclasses.asdict(t.pick),
    "full": full,
    "malformed": t.malformed or None,
    "invalid": t.invalid or None,
    "parts": dict(t.parts),
    "reward": None if math.isnan(t.reward) else t.reward,
    "weight": t.weight,
    "advantage": advantage,
    "oracle_success": truth,
    "turns": [
      {
        "kind": turn.kind,
        "image_id": turn.image_id,
        "text": turn.text,
        "length": turn.length,
        "truncated": turn.truncated,
        "logprob": float(turn.logprobs[: turn.length].sum()),
      }
      for turn in t.turns
    ],
  }


def metrics(rows: Sequence[dict[str, Any]], *, group_size: int) -> dict[str, float]:
  """Scalars of a step from its records, groups in order."""
  rewards = np.array([math.nan if r["reward"] is None else r["reward"] for r in rows])
  out = {k: s / c for k, (s, c) in grpo_lib.group_shares(rewards.reshape(-1, group_size)).items()}
  counted = [r for r in rows if r["invalid"] is None]
  out["reward"] = _mean(r["reward"] for r in counted)
  for part in sorted({name for r in counted for name in r["parts"]}):
    out[f"reward/{part}"] = _mean(r["parts"][part] for r in counted if part in r["parts"])
  out |= _outcomes(counted)
  finds = [r for r in counted if r["parts"]["disagreement"]]
  out["novelty_weight"] = _mean((r["weight"] for r in finds), empty=1.0)
  if rows[0]["oracle_success"] is not None:
    out["oracle_success"] = _mean(r["oracle_success"] for r in counted)
    out["oracle_precision"] = _mean((r["oracle_success"] for r in finds), empty=1.0)
  out["completions"] = float(len(rows))
  out["tokens"] = float(sum(turn["length"] for r in counted for turn in r["turns"]))
  for strategy in sorted({r["probe"]["strategy"] for r in rows}):
    mine = [r for r in counted if r["probe"]["strategy"] == strategy]
    out[f"find_rate/{strategy}"] = _mean(r["parts"]["disagreement"] for r in mine)
    out |= _lengths(strategy, [turn for r in mine for turn in r["turns"]])
  return out | _diversity(rows, group_size)


def agreement(judged: Iterable[tuple[str, Verdict]], judge: Judge) -> dict[str, float]:
  """Returns how often each two models say the same, where both say something.

  Only probes that are put to all models by chance count: in a cascade, those that all have answered
  are disputed more often than others. Two models that never answer the same probe have no row.

  Args:
    judged: questions and their verdicts.
    judge: decides sameness.
  """
  full = list(judged)
  out = {"agreement/probes": float(len(full))}
  if full:
    first = full[0][1]
    for a, b in itertools.combinations((first.target, *first.references), 2):
      said = ((question, v.answers[a], v.answers[b]) for question, v in full)
      found = judge.compare_all((question, x, y) for question, x, y in said if x and y)
      if found:
        out[f"agreement/{a}~{b}"] = found.count(Same.SAME) / len(found)
  return out


def _outcomes(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
  """Where the reward came from or went: shares of the valid samples, which add up to 1.

  A cascade leaves open why a probe is no find; those put to all models stand for the others.
  """
  count = max(len(rows), 1)
  malformed = sum(r["malformed"] is not None for r in rows) / count
  finds = sum(bool(r["parts"]["disagreement"]) for r in rows) / count
  asked = [r for r in rows if r["verdict"] is not None]
  known = [r["verdict"] for r in asked if r["full"] and not r["parts"]["disagreement"]]
  agree = _mean(v["agree"] for v in known)
  rest = len(asked) / count - finds
  return {
    "share_malformed": malformed,
    "share_find": finds,
    "share_all_agree": rest * agree,
    "share_no_consensus": rest * (1.0 - agree),
    "probes": float(len(asked) + sum("answerability" in r["parts"] for r in rows)),
  }


def _lengths(strategy: str, turns: Sequence[dict[str, Any]]) -> dict[str, float]:
  """Tokens of the replies that came to an end, and the share of those that did not."""
  out = {}
  for kind in sorted({turn["kind"] for turn in turns}):
    mine = [turn for turn in turns if turn["kind"] == kind]
    ended = (turn["length"] for turn in mine if not turn["truncated"])
    out[f"length/{strategy}/{kind}"] = _mean(ended)
    out[f"truncated/{strategy}/{kind}"] = _mean(turn["truncated"] for turn in mine)
  return out


def _diversity(rows: Sequence[dict[str, Any]], group_size: int) -> dict[str, float]:
  """How different the questions are, as shares of what was asked.

  distinct_4: different runs of four words; duplicates: probes, image included, that another sample
  of the step had put already.
  """
  texts = [r["probe"]["question"] if r["verdict"] is not None else "" for r in rows]
  asked = [text for text in texts if text]
  probes = [r["probe"]["probe_id"] for r in rows if r["verdict"] is not None]
  groups = [texts[i : i + group_size] for i in range(0, len(texts), group_size)]
  groups = [[text for text in group if text] for group in groups]
  words = [text.lower().split() for text in asked]
  runs = [tuple(w[i : i + 4]) for w in words for i in range(len(w) - 3)]
  return {
    "unique_questions": len(set(asked)) / max(len(asked), 1),
    "unique_questions_in_group": _mean(len(set(g)) / len(g) for g in groups if g),
    "distinct_4": len(set(runs)) / max(len(runs), 1),
    "duplicates": 1.0 - len(set(probes)) / len(probes) if probes else 0.0,
  }


def _mean(values: Iterable[float], *, empty: float = 0.0) -> float:
  values = [float(v) for v in values]
  return math.fsum(values) / len(values) if values else empty
