# SPDX-License-Identifier: Apache-2.0
"""What an endpoint was asked and what that cost: counted for the manifest, bounded by a budget."""

from collections import Counter

from auditdm_jax.endpoints.config import LimitConfig, Price
from auditdm_jax.endpoints.failures import BudgetSpent
from auditdm_jax.endpoints.replies import Reply


class Budget:
  """Requests and tokens; changed by one thread, read by any."""

  def __init__(self, name: str, limits: LimitConfig, *, requests: int = 0, tokens: int = 0):
    """Starts with what earlier runs have spent.

    Args:
      name: what the endpoint is called in messages.
      limits: `max_requests` and `max_tokens`.
      requests: sent by earlier runs.
      tokens: charged by them.
    """
    self._name, self._limits = name, limits
    self._requests, self._tokens = requests, tokens
    self._counts: Counter[str] = Counter()

  def take(self) -> None:
    """Counts a request that is about to be sent.

    Raises:
      BudgetSpent: no more may be sent.
    """
    limits = self._limits
    for field, spent, most in (
      ("max_requests", self._requests, limits.max_requests),
      ("max_tokens", self._tokens, limits.max_tokens),
    ):
      if most and spent >= most:
        raise BudgetSpent(
          f"{self._name}: endpoint.limits.{field} is {most} and {spent} are spent. "
          "What was answered is kept: the same command with more continues"
        )
    self._requests += 1
    self._counts["requests"] += 1

  def charge(self, reply: Reply, *, bound: int) -> int:
    """Counts what a question came to, and returns the tokens that it is charged.

    Args:
      reply: its answer, or "no answer".
      bound: tokens to charge where the endpoint does not say.
    """
    prompt, completion = reply.usage.prompt, reply.usage.completion
    self._counts["prompt_tokens"] += prompt or 0
    self._counts["completion_tokens"] += completion or 0
    if reply.text is None:
      assert reply.failure is not None
      self._counts["no_answer"] += 1
      self._counts[f"no_answer_{reply.failure.name.lower()}"] += 1
    else:
      self._counts["answers"] += 1
      self._counts["answers_cut"] += reply.finish == "length"
    # A question that failed has no usage to know.
    unknown = (prompt is None or completion is None) and reply.finish != "failed"
    self._counts["unknown_usage"] += unknown
    tokens = bound if unknown else (prompt or 0) + (completion or 0)
    self._tokens += tokens
    return tokens

  def count(self, what: str, number: int = 1) -> None:
    """Counts something that costs nothing, such as an answer from the cache."""
    self._counts[what] += number

  def usage(self) -> dict[str, int]:
    """Returns the counts of this process."""
    return {name: number for name, number in sorted(self._counts.items()) if number}

  def cost(self, price: Price | None) -> float | None:
    """Returns the price of this process's known tokens; None without a price."""
    if price is None:
      return None
    counts = self._counts
    return 1e-6 * (
      counts["prompt_tokens"] * price.prompt + counts["completion_tokens"] * price.completion
    )
