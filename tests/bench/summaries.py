# SPDX-License-Identifier: Apache-2.0
"""Summaries of runs that never were."""

from auditdm_jax.audit.rates import rate
from auditdm_jax.audit.summary import (
  Accuracy,
  Compared,
  ModeScores,
  Queries,
  Search,
  Summary,
)


def summary(
  trained: int, *, queries: int = 1_000, examples: int | None = None, confirmed: int = 3
) -> Summary:
  """A summary with `trained` finds among 1,000 probes of the trained auditor."""
  repaired = {} if examples is None else {"repaired": _accuracy(examples)}
  return Summary(
    target="t",
    compared=Compared(asked=100, failures=rate(10, 100), left_out={}, not_looked_at=0),
    search=Search(rate(170, 1_000), rate(trained, 1_000)),
    search_modes=None,
    precision=None,
    coverage=None,
    gaps={},
    modes=ModeScores(recall=None, precision=None, found=5, confirmed=confirmed),
    rectify=repaired,
    reaudit=None,
    reaudits=(),
    later=(),
    arms={},
    strategies={},
    curve=(),
    queries=Queries(
      grpo=queries,
      grpo_distinct=queries,
      discover=0,
      total=queries,
      control_random=None,
      verify_looked_at=0,
    ),
  )


def _accuracy(examples: int) -> Accuracy:
  return Accuracy(all=rate(8, 10), gaps=rate(0, 0), rest=rate(8, 10), examples=examples)
