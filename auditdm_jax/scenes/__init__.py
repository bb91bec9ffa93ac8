# SPDX-License-Identifier: Apache-2.0
"""The scenes world: symbolic scenes, an exact renderer, programs as questions, and their oracle."""

import numpy as np

from auditdm_jax.scenes import questions, render


def oracle(image: np.ndarray, question: str) -> str | None:
  """The true answer to a question about u8[64,64,3], or None if it has none (checks only)."""
  program = questions.parse_question(question)
  if program is None:
    return None
  answer = questions.execute(program, render.parse(image))
  return None if answer == questions.UNANSWERABLE else answer
