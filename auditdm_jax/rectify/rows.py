# SPDX-License-Identifier: Apache-2.0
"""How questions and labels become rows of [prompt | suffix | padding].

A row ends with the model's own terminator: <eos> for PaliGemma, <end_of_turn> for Gemma 3. Only
label and terminator are supervised. What `ar` says of the prompt is what the family was pretrained
with, in the notation of `models.multimodal.make_attn_mask`:

    PaliGemma: the prompt sees itself       Gemma 3: causal, but an image sees itself
    <img> <img> <bos> what \\n | red         <bos> … <img> <img> … model \\n | red
    0     0     0     0    0  | 1           1     1 1     0     1 1     1  | 1
"""

from collections.abc import Sequence
import dataclasses
from typing import Self

import numpy as np

from auditdm_jax.text import prompts
from auditdm_jax.text.tokenizer import Tokenizer
from auditdm_jax.vlm_model import Vlm


@dataclasses.dataclass(frozen=True)
class RowLayout:
  """Turns text into rows.

  Attributes:
    tokenizer: the model's.
    template: of a prompt, see `text.prompts`.
    num_image_tokens: slots of the row's image.
    stop_id: what a label ends with, see `prompts.terminator`.
    length: T, tokens of a row with its image slots.
    suffix: C, most suffix tokens with the terminator.
    causal: whether the prompt is causal but for its image; otherwise all of it sees all of it.
  """

  tokenizer: Tokenizer
  template: str
  num_image_tokens: int
  stop_id: int
  length: int
  suffix: int
  causal: bool = False

  @classmethod
  def of(cls, vlm: Vlm, *, length: int, suffix: int) -> Self:
    """Returns the layout of a model's own rows."""
    return cls(
      vlm.writer(),
      vlm.template,
      vlm.config.num_image_tokens,
      vlm.terminator,
      length=length,
      suffix=suffix,
      causal=vlm.config.kind == "gemma3",
    )

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
      out["ar"][i, :p] = self._inside(prefix) if self.causal else 0
      out["position"][i, :s] = np.arange(p - 1, p + s - 1)
      out["targets"][i, :s] = target
      out["mask"][i, :s] = True
    return out

  def _inside(self, prompt: list[int]) -> np.ndarray:
    """Returns i[P], 0 where an image goes on and 1 elsewhere."""
    slot = np.array(prompt) == self.tokenizer.image_id
    return 1 - (slot & np.insert(slot[:-1], 0, False))

  def _prompt(self, text: str) -> list[int]:
    return prompts.render(self.tokenizer, self.template, text, self.num_image_tokens)

  def _suffix(self, text: str) -> list[int]:
    return prompts.render_reply(self.tokenizer, self.template, text, stop_id=self.stop_id)
