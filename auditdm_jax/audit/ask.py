# SPDX-License-Identifier: Apache-2.0
"""Asking a model: what it must be able to do, how it is asked, and what its replies amount to.

There are two kinds of models: those that take the features of images, which models of one tower
share, and those that take images, such as endpoints.
"""

from collections.abc import Sequence
import dataclasses
from typing import ClassVar, Literal, Protocol

import numpy as np

from auditdm_jax.audit.verdict import UNSURE, ConsensusRule
from auditdm_jax.core import runtime
from auditdm_jax.core.config import UserError, check
from auditdm_jax.models.multimodal import VlmConfig
from auditdm_jax.text import styles
from auditdm_jax.text.short import Kind
from auditdm_jax.text.styles import RawReply, Said, Style
from auditdm_jax.text.tokenizer import Tokenizer

AnswerKind = Kind | Literal["unsure"]
# Characters of a reply and of an answer that are kept; of longer ones their two ends.
MAX_RAW = 2000


class Vlm(Protocol):
  """A model that takes features; `auditdm_jax.vlm.Vlm` is one."""

  takes: ClassVar[Literal["features"]]

  @property
  def style(self) -> Style:
    """How it is asked for a short answer."""
    ...

  @property
  def config(self) -> VlmConfig:
    """Its architecture, for counting FLOPs."""
    ...

  @property
  def tokenizer(self) -> Tokenizer | None: ...

  @property
  def tower_id(self) -> str:
    """Identity of the vision tower: equal ids mean equal features."""
    ...

  def encode(self, images: Sequence[np.ndarray]) -> np.ndarray:
    """u8[H,W,3] images → f32[U,P,Dv]."""
    ...

  def reply_features(
    self,
    features: np.ndarray,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    which: Sequence[Sequence[int]],
  ) -> Sequence[Said]:
    """Greedy replies; prompt i is about features[which[i]]."""
    ...

  def is_finite(self, features: np.ndarray, prompt: str) -> bool:
    """Whether it gives numbers after a prompt about an image, features [1,P,Dv]."""
    ...


class Endpoint(Protocol):
  """A model that takes images: it runs elsewhere, and a reply may fail to come."""

  takes: ClassVar[Literal["pixels"]]

  @property
  def style(self) -> Style:
    """How it is asked for a short answer; it sends `style.system` in a turn of its own."""
    ...

  def answer(
    self, images: Sequence[np.ndarray], prompts: Sequence[str], *, max_new_tokens: int
  ) -> Sequence[Said]:
    """Greedy replies about u8[H,W,3] images, one for each prompt."""
    ...


Model = Vlm | Endpoint


@dataclasses.dataclass(frozen=True)
class BankConfig:
  """How the bank asks.

  Attributes:
    max_new_tokens: longest reply, of models whose style does not say otherwise.
    batch_size: probes per device call (a Vlm buckets what it gets).
    feature_bytes: bound of the feature cache.
    dedup: ask equal (image, question) pairs once.
    cascade: ask the next model only where the verdict is still open.
    order: cascade order, cheap to dear; empty = first reference, target, other references.
    abstentions: answers that are no consensus. A model that says in words that it cannot tell has
      given the first of them; without any, it has given no answer.
    agree: least share of the references' weight behind one answer that makes a consensus: 1 = all,
      0.67 = two of three; more than a half.
    weights: (reference, weight) rows, 1 for the others; give two that err together a half each.
    sure: least probability that a reference must give its own answer, its end included; below it
      the reference abstains. 0 = off, as in the paper. An endpoint says it where its section has
      ask.extra=dict(logprobs=True), and counts as sure where it does not.
    styles: (model, style) rows for models that are to be asked otherwise than their origin says: a
      built-in style's name, or a section of `text.styles.Style`.
  """

  max_new_tokens: int = 8
  batch_size: int = 512
  feature_bytes: int = 512 * 2**20
  dedup: bool = True
  cascade: bool = False
  order: tuple[str, ...] = ()
  abstentions: tuple[str, ...] = ()
  agree: float = 1.0
  weights: tuple[tuple[str, float], ...] = ()
  sure: float = 0.0
  styles: tuple[tuple[str, Style | str], ...] = ()

  def __post_init__(self):
    check(vars(self), "bank", "max_new_tokens", "batch_size", "feature_bytes", least=1)
    check(vars(self), "bank", "agree", above=0.5, most=1.0)
    check(vars(self), "bank", "sure", least=0.0, below=1.0)
    weights = dict(self.weights)
    check(weights, "bank.weights", *weights, above=0.0)
    if len(weights) < len(self.weights):
      raise UserError(f"bank.weights: a reference is there twice: {self.weights}")
    for name, style in self.styles:
      styles.find(style, where=f"bank.styles: {name}")

  @property
  def rule(self) -> ConsensusRule:
    """What makes a consensus."""
    return ConsensusRule(self.agree, self.weights, self.abstentions, self.sure)

  def style_of(self, name: str, default: Style) -> Style:
    """How the model of this name is asked; `default` is what its origin says."""
    for model, style in self.styles:
      if model == name:
        return styles.find(style, where=f"bank.styles: {name}")
    return default


@dataclasses.dataclass(frozen=True)
class Answer:
  """What became of a question that was put to a model.

  Attributes:
    text: the short answer, bounded; "" if there is no answer.
    kind: what the reply was, see `text.short.Short`; "unsure" is an answer of a reference that is
      not sure of it.
    raw: what was said, bounded.
    logprob: of the whole reply; None where it is unknown.
  """

  text: str
  kind: AnswerKind
  raw: str
  logprob: float | None = None

  def as_reference(self, rule: ConsensusRule) -> "Answer":
    """Returns it as a reference gives it, whose answers must be sure."""
    if self.kind not in ("answer", "whole") or rule.is_sure(self.logprob):
      return self
    return dataclasses.replace(self, kind=UNSURE)


def ask(
  model: Model,
  seen: np.ndarray | Sequence[np.ndarray],
  questions: Sequence[str],
  *,
  config: BankConfig,
  which: Sequence[int] | None = None,
) -> list[Answer]:
  """Puts questions to a model in its style and takes its short answers.

  Args:
    model: of either kind.
    seen: features [U,P,Dv] of its tower, or for a model that takes images u8[H,W,3] each.
    questions: what is asked.
    config: how long a reply may be, and what an abstention is.
    which: of the features, those that each question is about; None = one about each of `seen`.
  """
  style, new = model.style, model.style.max_new_tokens or config.max_new_tokens
  if model.takes == "features":
    prompts = [style.put(q) for q in questions]
    own = [[i] for i in (range(len(questions)) if which is None else which)]
    replies = model.reply_features(np.asarray(seen), prompts, max_new_tokens=new, which=own)
  else:
    prompts = [style.put(q, has_system_turn=True) for q in questions]
    replies = _from_elsewhere(model, seen, prompts, max_new_tokens=new)
  return [_read(style, r, q, config) for r, q in zip(replies, questions, strict=True)]


def _from_elsewhere(
  model: Endpoint,
  images: np.ndarray | Sequence[np.ndarray],
  prompts: Sequence[str],
  *,
  max_new_tokens: int,
) -> list[RawReply]:
  """Of several processes each asks for its share, and all learn what came back."""
  rows = runtime.mine(range(len(prompts)))
  said = model.answer(
    [images[i] for i in rows], [prompts[i] for i in rows], max_new_tokens=max_new_tokens
  )
  if len(said) != len(rows):
    raise ValueError(f"{len(said)} replies to {len(rows)} prompts")
  shares = runtime.gather(
    [(r.text, r.finish, None if r.failure is None else str(r.failure), r.logprob) for r in said]
  )
  return [RawReply(*shares[i % len(shares)][i // len(shares)]) for i in range(len(prompts))]


def _read(style: Style, reply: Said, question: str, config: BankConfig) -> Answer:
  short, raw = style.short(reply, question), _bounded(reply.text or "")
  text = _bounded(short.text or "")
  if short.kind == "abstention":
    text = config.abstentions[0] if config.abstentions else ""
  abstains = text.strip().lower() in map(str.lower, config.abstentions)
  return Answer(text, "abstention" if abstains else short.kind, raw, reply.logprob)


def _bounded(text: str) -> str:
  """Of a long text its two ends; half a surrogate pair, which no file takes, becomes "?"."""
  text, half = text.encode(errors="replace").decode(), MAX_RAW // 2
  return text if len(text) <= MAX_RAW else f"{text[:half]} … {text[-half:]}"
