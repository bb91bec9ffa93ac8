# SPDX-License-Identifier: Apache-2.0
"""How questions and labels become rows of [prompt | suffix | padding]."""

from collections.abc import Sequence
import dataclasses
import functools

import numpy as np

from auditdm_jax.text import prompts
from auditdm_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class RowLayout:
  """Turns text into rows.

  Attributes:
    length: T, tokens of a row with its image slots.
    suffix: C, most suffix tokens with the terminator.
  """

  tokenizer: Tokenizer
  template: str
  num_image_tokens: int
  stop_id: int
  length: int
  suffix: int

  def rows(self, texts: Sequence[str], suffixes: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns every field of `supervised.Batch` but `images` and `image`.

    Raises:
      ValueError: a prompt and its suffix do not fit.
    """
    n, t, c = len(texts), self.length, self.suffix
    out = {
      "tokens": np.zeros((n, t), np.int32),
      "valid": np.zeros((n, t), bool),
      "ar": np.ones((n, t), np.int32),
      "position": np.zeros((n, c), np.int32),
      "targets": np.zeros((n, c), np.int32),
      "mask": np.zeros((n, c), bool),
    }
    for i, (text, suffix) in enumerate(zip(texts, suffixes, strict=True)):
      prefix, target = self._prompt(text), self._suffix(suffix)
      p, s = len(prefix), len(target)
      if p + s - 1 > t or s > c:
        raise ValueError(
          f"{p} prompt and {s} suffix tokens do not fit in {t} with {c}:"
          f" {text[:80]!r} -> {suffix[:80]!r}"
        )
      out["tokens"][i, : p + s - 1] = prefix + target[:-1]
      out["valid"][i, : p + s - 1] = True
      out["ar"][i, :p] = 0
      out["position"][i, :s] = np.arange(p - 1, p + s - 1)
      out["targets"][i, :s] = target
      out["mask"][i, :s] = True
    return out

  @functools.lru_cache(maxsize=65536)  # noqa: B019  (layouts live as long as a run)
  def _prompt(self, text: str) -> list[int]:
    return prompts.render(self.tokenizer, self.template, text, self.num_image_tokens)

  @functools.lru_cache(maxsize=65536)  # noqa: B019
  def _suffix(self, text: str) -> list[int]:
    return [*self.tokenizer.encode(text), self.stop_id]
