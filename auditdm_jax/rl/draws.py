# SPDX-License-Identifier: Apache-2.0
"""What is asked of the auditor, and which prompts a step takes: pure functions of (seed, step)."""

import dataclasses
import functools

import numpy as np

from auditdm_jax.core.config import UserError, check, check_spelling, did_you_mean
from auditdm_jax.rl.dynamic import DynamicConfig
from auditdm_jax.rl.gauges import GaugeConfig
from auditdm_jax.text import prompts as prompts_lib

KINDS = ("instruction", "caption", "question")  # Texts for images first: the service is slow.


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
  """What is asked of the auditor.

  Attributes:
    prompts: prompts per step by strategy; fixed, so that shapes are. "edit_only" is "edit-only".
    task: the auditor's task by kind (question, caption, instruction, question-after-caption,
      question-after-instruction); what is missing is `text.prompts.AUDITOR_PROMPTS`, but a given
      `question` also serves the second turns.
    max_new_tokens: by kind of reply: question, caption, instruction.
    max_chars: longest reply that is accepted.
    max_invalid: share of invalid samples above which a step fails.
    deadline_s: seconds from the request of an image to the image, whatever the client does; a
      sample that takes longer is invalid.
    full_share: share of the probes that a cascading bank asks all models about, so that the
      numbers of a step that need all answers are not biased by who was asked.
    dynamic: tops the batch up with live groups; off by default.
    gauges: watch for reward hacking; off by default.
    seed: of everything that is drawn; 32 bits.
  """

  prompts: dict[str, int] = dataclasses.field(default_factory=lambda: {"question": 32})
  task: dict[str, str] = dataclasses.field(default_factory=dict)
  max_new_tokens: dict[str, int] = dataclasses.field(
    default_factory=lambda: {"question": 64, "caption": 128, "instruction": 64}
  )
  max_chars: int = 400
  max_invalid: float = 0.2
  deadline_s: float = 600.0
  full_share: float = 0.05
  dynamic: DynamicConfig = DynamicConfig()
  gauges: GaugeConfig = GaugeConfig()
  seed: int = 0

  def __post_init__(self):
    check_spelling(self.prompts, "rollout.prompts")
    for strategy, count in self.prompts.items():
      name = strategy.replace("_", "-")
      if name not in prompts_lib.FIRST_TURN:
        hint = did_you_mean(name, prompts_lib.FIRST_TURN)
        raise UserError(f"rollout.prompts.{strategy}: unknown strategy{hint}")
      if count < 0:
        raise UserError(f"rollout.prompts.{strategy}={count}: must be at least 0")
    if not sum(self.prompts.values()):
      raise UserError("rollout.prompts: no strategy has a prompt")
    for kind in self.task:
      if kind not in prompts_lib.AUDITOR_PROMPTS:
        hint = did_you_mean(kind, prompts_lib.AUDITOR_PROMPTS)
        raise UserError(f"rollout.task.{kind}: unknown kind{hint}")
    needed = {prompts_lib.FIRST_TURN[s] for s in self.counts()} | {"question"}
    if missing := needed - set(self.max_new_tokens):
      raise UserError(f"rollout.max_new_tokens.{sorted(missing)[0]}: missing key")
    if unknown := set(self.max_new_tokens) - set(KINDS):
      hint = did_you_mean(sorted(unknown)[0], KINDS)
      raise UserError(f"rollout.max_new_tokens.{sorted(unknown)[0]}: unknown kind{hint}")
    for name in ("max_invalid", "full_share"):
      if not 0 <= vars(self)[name] <= 1:
        raise UserError(f"rollout.{name}={vars(self)[name]}: a share, from 0 to 1")
    check(self.max_new_tokens, "rollout.max_new_tokens", least=1)
    check(vars(self), "rollout", "max_chars", least=1)
    check(vars(self), "rollout", "deadline_s", above=0)
    check(vars(self), "rollout", "seed", least=0, below=2**32)

  def counts(self) -> dict[str, int]:
    """Strategies with at least one prompt, in the order they are worked on."""
    named = {name.replace("_", "-"): count for name, count in self.prompts.items() if count}
    order = sorted(named, key=lambda s: (KINDS.index(prompts_lib.FIRST_TURN[s]), s))
    return {strategy: named[strategy] for strategy in order}

  def task_text(self, kind: str, *, first: str = "") -> str:
    """The auditor's task; `first` is the caption or instruction of the first turn."""
    text = self.task.get(kind)
    if text is None and kind.startswith("question-after-"):
      text = self.task.get("question")
    text = prompts_lib.AUDITOR_PROMPTS[kind] if text is None else text
    return text.replace("{first}", first)


@dataclasses.dataclass(frozen=True)
class Prompt:
  """One draw: `uid` counts all draws of the run, `index` is the image's place in the pool."""

  uid: int
  index: int
  strategy: str


def draw_prompts(counts: dict[str, int], *, seed: int, step: int, size: int) -> list[Prompt]:
  """Prompts of a step: the next images of an endless walk through shuffled passes over the pool."""
  strategies = [strategy for strategy, count in counts.items() for _ in range(count)]
  first = step * len(strategies)
  return [
    Prompt(uid, int(_order(seed, uid // size, size)[uid % size]), strategy)
    for uid, strategy in enumerate(strategies, start=first)
  ]


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, size: int) -> np.ndarray:
  return np.random.default_rng((seed, epoch)).permutation(size)


def draw_seed(*numbers: int) -> int:
  """A 32-bit seed that depends on all numbers."""
  return int(np.random.SeedSequence(numbers).generate_state(1)[0])
