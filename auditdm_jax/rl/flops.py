# SPDX-License-Identifier: Apache-2.0
"""Useful floating-point operations of a step, from the models' sizes and what was really done.

Matrix products only, attention as if it were not causal, nothing for what is computed twice
(remat) or for padding: the "model FLOPs" of PaLM (arXiv:2204.02311, appendix B).
"""

from collections.abc import Iterator, Sequence, Set
import contextlib
import itertools

import numpy as np

from auditdm_jax.audit.answer import ModelBank
from auditdm_jax.audit.ask import Vlm as Answering
from auditdm_jax.models import multimodal
from auditdm_jax.models.flops import decoder, tower
from auditdm_jax.rl.batch import AuditorReply, LearnerBatch, Trajectory
from auditdm_jax.vlm import Vlm

_SAMPLE = 16  # Probes whose length is measured to know that of all.


def learning(config: multimodal.VlmConfig, batch: LearnerBatch, *, kl: bool) -> float:
  """Of one update: forward and backward, and the reference's forward where there is a KL."""
  total = 0.0
  for rows in batch.parts:
    used = rows.loss_mask.any(axis=(1, 2))  # Rows of padding are no work.
    prompt, drawn = float(rows.prompt_valid[used].sum()), float(rows.loss_mask.sum())
    context = (prompt + drawn) / max(int(used.sum()), 1)
    total += decoder(config.text, tokens=prompt + drawn, context=context, predictions=drawn)
  if batch.pixels is not None:
    total += len(batch.pixels) * tower(config.tower)
  return total * (4 if kl else 3)


class Meter:
  """Adds up the work of a rollout by phase.

  Where an endpoint answers, the work of the answers is unknown, and `flops` has no "answers".
  """

  def __init__(self, auditor: Vlm, bank: ModelBank):
    self._config, self._bank = auditor.config, bank
    self._vlms = {name: m for name, m in bank.vlms.items() if m.takes == "features"}
    self._towers = {v.tower_id: v.config.tower for v in (auditor, *self._vlms.values())}
    self._computed = dict(bank.computed)
    self.flops = {"features": 0.0, "sample": 0.0}
    if len(self._vlms) == len(bank.vlms):
      self.flops["answers"] = 0.0

  @contextlib.contextmanager
  def towers(self, phase: str) -> Iterator[None]:
    """Counts the images that the block encodes; auditor and bank share the bank's cache."""
    before = self._bank.cache.encoded.copy()
    yield
    for tower_id, images in (self._bank.cache.encoded - before).items():
      if phase in self.flops:
        self.flops[phase] += images * tower(self._towers[tower_id])

  def proposed(self, dropped: Sequence[Trajectory], *, asked: Set[int], authors: int = 1) -> None:
    """Adds what was written and not asked, beside samples of the `asked` prompts or without any.

    Of several `authors` each has a prefill of every prompt.
    """
    left: dict[int, list[AuditorReply]] = {}
    for t in dropped:
      left.setdefault(t.prompt_id, []).append(t.turns[0])
    for prompt, replies in left.items():
      read = len(replies[0].prompt)
      again = decoder(self._config.text, tokens=read, context=read, predictions=1)
      self.flops["sample"] += (authors - 1) * again
      if prompt not in asked:
        self._write(replies)
    for reply in (r for prompt, replies in left.items() if prompt in asked for r in replies):
      context = len(reply.prompt) + reply.length / 2
      self.flops["sample"] += decoder(
        self._config.text, tokens=reply.length, context=context, predictions=reply.length
      )

  def count(self, trajectories: Sequence[Trajectory]) -> None:
    """Adds what was written, and what the models have answered since the last call.

    Several probes may have one first turn; it was written once, and their second turns share a
    prefill.
    """
    for _, of in itertools.groupby(trajectories, key=lambda t: t.prompt_id):
      samples = [t.turns for t in of]
      self._write(list({id(first): first for first, *_ in samples}.values()))
      later: dict[int, list[AuditorReply]] = {}
      for first, *rest in samples:
        later.setdefault(id(first), []).extend(rest)
      for replies in filter(None, later.values()):
        self._write(replies)
    self.answered([(t.question, t.consensus) for t in trajectories if t.verdict is not None])

  def answered(self, asked: Sequence[tuple[str, str]]) -> None:
    """Adds what the models have answered since the last call, to (question, consensus) pairs."""
    done, self._computed = self._computed, dict(self._bank.computed)
    for name, probes in self._computed.items():
      fresh = probes - done.get(name, 0)
      if fresh and "answers" in self.flops:
        self.flops["answers"] += fresh * answer(self._vlms[name], asked[:_SAMPLE])

  def _write(self, turns: Sequence[AuditorReply]) -> None:
    """One prefill and the tokens of the completions that share it."""
    prompt, drawn = len(turns[0].prompt), sum(turn.length for turn in turns)
    config = self._config.text
    self.flops["sample"] += decoder(config, tokens=prompt, context=prompt, predictions=len(turns))
    context = prompt + drawn / len(turns) / 2
    self.flops["sample"] += decoder(config, tokens=drawn, context=context, predictions=drawn)


def answer(vlm: Answering, asked: Sequence[tuple[str, str]]) -> float:
  """Of one answer, for probes as long as these."""
  if vlm.tokenizer is None:
    raise ValueError("a model without a tokenizer gives no answers")
  encode = vlm.tokenizer.encode
  lengths = [len(encode(question)) + len(encode(consensus)) for question, consensus in asked]
  tokens = vlm.config.num_image_tokens + (float(np.mean(lengths)) if lengths else 0.0)
  return decoder(vlm.config.text, tokens=tokens, context=tokens, predictions=1)
