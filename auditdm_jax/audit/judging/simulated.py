# SPDX-License-Identifier: Apache-2.0
"""A model judge whose errors are known: for benchmarks and tests of what a judge's errors do."""

from collections.abc import Callable, Sequence
import dataclasses
import hashlib

from auditdm_jax.audit.judging.model import read_prompt


@dataclasses.dataclass
class SimulatedModel:
  """Says of two answers what is true, or its opposite with a given chance.

  The chance falls for each prompt by itself, so the two orders of a pair err independently: with an
  error e, a pair is wrong with chance e², and undecided with chance 2e(1-e).

  Attributes:
    same: (question, answer, answer) -> whether they mean the same, for normal forms.
    error: chance of a wrong reply.
    seed: of the chance.
    asked: prompts so far.
    calls: calls so far.
  """

  same: Callable[[str, str, str], bool]
  error: float = 0.0
  seed: int = 0
  asked: int = 0
  calls: int = 0

  def answer(
    self, images: Sequence[None], prompts: Sequence[str], *, max_new_tokens: int
  ) -> list[str | None]:
    """As `model.TextModel` has it."""
    self.asked += len(prompts)
    self.calls += 1
    return ["yes" if self._says(prompt) else "no" for prompt in prompts]

  def _says(self, prompt: str) -> bool:
    digest = hashlib.sha256(f"{self.seed}\0{prompt}".encode()).digest()
    wrong = int.from_bytes(digest[:8], "big") < self.error * 2**64
    return self.same(*read_prompt(prompt)) != wrong
