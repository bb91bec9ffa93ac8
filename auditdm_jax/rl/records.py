# SPDX-License-Identifier: Apache-2.0
"""What is written down of a step: one record per completion, and numbers that diagnose a run."""

from collections.abc import Sequence
import math
from typing import Any

import numpy as np

from auditdm_jax.audit import probe as probe_lib
from auditdm_jax.rl import grpo as grpo_lib
from auditdm_jax.rl.batch import Trajectory


def completion(
  trajectory: Trajectory, *, step: int, advantage: float, truth: bool | None
) -> dict[str, Any]:
  """The record of one trajectory.

  `reward` is None where it is invalid, `oracle_success` without an oracle.
  """
  t, verdict = trajectory, trajectory.verdict
  asked = verdict is not None
  return {
    "step": step,
    "prompt_id": t.prompt_id,
    "sample": t.sample,
    "strategy": t.strategy,
    "source_image_id": t.source_image_id,
    "image_id": t.image_id,
    "image_seed": t.image_seed,
    "question": t.question,
    "caption": t.fields.get("caption"),
    "instruction": t.fields.get("instruction"),
    "probe_id": probe_lib.probe_id(t.image_id, t.question) if asked else None,
    "verdict": verdict.to_dict() if asked else None,
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
  out |= _outcomes(counted)
  finds = [r for r in counted if r["parts"]["disagreement"]]
  out["novelty_weight"] = _mean((r["weight"] for r in finds), empty=1.0)
  if rows[0]["oracle_success"] is not None:
    out["oracle_success"] = _mean(r["oracle_success"] for r in counted)
    out["oracle_precision"] = _mean((r["oracle_success"] for r in finds), empty=1.0)
  for strategy in sorted({r["strategy"] for r in rows}):
    out[f"find_rate/{strategy}"] = _mean(
      r["parts"]["disagreement"] for r in counted if r["strategy"] == strategy
    )
  turns = [turn for r in counted for turn in r["turns"]]
  out["tokens"] = float(sum(turn["length"] for turn in turns))
  for kind in sorted({turn["kind"] for turn in turns}):
    mine = [turn for turn in turns if turn["kind"] == kind]
    out[f"length/{kind}"] = _mean(turn["length"] for turn in mine if not turn["truncated"])
    out[f"truncated/{kind}"] = _mean(turn["truncated"] for turn in mine)
  out |= _diversity(rows, group_size)
  return out


def _outcomes(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
  """Where the reward came from or went: shares of the valid samples, which add up to 1."""
  count = max(len(rows), 1)
  malformed = sum(r["malformed"] is not None for r in rows)
  finds = sum(bool(r["parts"]["disagreement"]) for r in rows)
  agree = sum(r["verdict"] is not None and r["verdict"]["agree"] for r in rows)
  asked = sum(r["verdict"] is not None for r in rows)
  return {
    "share_malformed": malformed / count,
    "share_find": finds / count,
    "share_all_agree": (agree - finds) / count,
    "share_no_consensus": (asked - agree) / count,
    "probes": float(asked),
  }


def _diversity(rows: Sequence[dict[str, Any]], group_size: int) -> dict[str, float]:
  """Different questions per batch and per group, as shares of those that were asked."""
  texts = [r["question"] if r["verdict"] is not None else "" for r in rows]
  asked = [text for text in texts if text]
  groups = [texts[i : i + group_size] for i in range(0, len(texts), group_size)]
  groups = [[text for text in group if text] for group in groups]
  return {
    "unique_questions": len(set(asked)) / max(len(asked), 1),
    "unique_questions_in_group": _mean(len(set(g)) / len(g) for g in groups if g),
  }


def _mean(values, *, empty: float = 0.0) -> float:
  values = [float(v) for v in values]
  return math.fsum(values) / len(values) if values else empty
