# SPDX-License-Identifier: Apache-2.0
r"""A reward term of one's own: short questions earn more.

COMMAND
  python -m auditdm_jax train --config=configs/ablations/first.py --workdir=runs/own_reward \
    --config.reward.terms="(('examples.own_reward:brevity', 0.25),)"

The reward gains 0.25 x brevity. `metrics/` and the records log the term under its name.
"""

from auditdm_jax.rl.reward import Facts


def brevity(facts: Facts) -> float | None:
  """Returns 1 / number of words, in (0, 1]; None without a question, which leaves the term out."""
  words = facts.question.split()
  return 1.0 / len(words) if words else None
