# SPDX-License-Identifier: Apache-2.0
"""What the auditor is asked, and the prompts of a step: pure functions of (seed, walk, step)."""

from collections.abc import Mapping
import dataclasses
import functools

import numpy as np

from auditdm_jax.core import streams
from auditdm_jax.core.config import UserError, check, check_spelling, did_you_mean
from auditdm_jax.rl import strategy as strategy_lib
from auditdm_jax.rl.dynamic import DynamicConfig
from auditdm_jax.rl.gauges import GaugeConfig
from auditdm_jax.rl.strategy import Strategy
from auditdm_jax.rl.surrogate import SurrogateConfig

Walk = tuple[int | str, ...]


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
  """What is asked of the auditor.

  Attributes:
    prompts: prompts per step by strategy; fixed, so that shapes are. "edit_only" is "edit-only".
    strategies: import paths of strategies outside the package, such as "my_module:MINE".
    task: the auditor's task by kind (question, caption, instruction, question-after-caption,
      question-after-instruction). A missing one is the strategy's own prompt; `question` also
      serves the second turns.
    max_new_tokens: longest reply by kind: question, caption, instruction.
    max_chars: longest reply that is accepted.
    max_invalid: share of invalid samples above which a step fails.
    deadline_s: seconds from the request of an image to the image, whatever the client does; a
      sample that takes longer is invalid.
    full_share: share of the probes that a cascading bank asks all models about, so that the
      numbers of a step that need all answers are not biased by who was asked.
    dynamic: tops the batch up with live groups; off by default.
    gauges: watch for reward hacking; off by default.
    surrogate: picks which samples are asked; off by default.
    seed: of everything that is drawn; 32 bits.
  """

  prompts: dict[str, int] = dataclasses.field(default_factory=lambda: {"question": 32})
  strategies: tuple[str, ...] = ()
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
  surrogate: SurrogateConfig = SurrogateConfig()
  seed: int = 0

  def __post_init__(self):
    check_spelling(self.prompts, "rollout.prompts")
    known = strategy_lib.known(self.strategies)
    for name, count in self.prompts.items():
      strategy_lib.find(name, known)
      if count < 0:
        raise UserError(f"rollout.prompts.{name}={count}: must be at least 0")
    if not sum(self.prompts.values()):
      raise UserError("rollout.prompts: no strategy has a prompt")
    tasks = {s.task(number) for s in known for number in range(len(s.turns))}
    _check_kinds("task", self.task, known=tasks)
    kinds = {turn.kind for s in known for turn in s.turns}
    _check_kinds("max_new_tokens", self.max_new_tokens, known=kinds)
    needed = {turn.kind for s, _ in self.active() for turn in s.turns}
    if missing := needed - set(self.max_new_tokens):
      raise UserError(f"rollout.max_new_tokens.{sorted(missing)[0]}: missing key")
    check(self.max_new_tokens, "rollout.max_new_tokens", least=1)
    for name in ("max_invalid", "full_share"):
      if not 0 <= vars(self)[name] <= 1:
        raise UserError(f"rollout.{name}={vars(self)[name]}: a share, from 0 to 1")
    check(vars(self), "rollout", "max_chars", least=1)
    check(vars(self), "rollout", "deadline_s", above=0)
    check(vars(self), "rollout", "seed", least=0, below=2**32)

  def known(self) -> tuple[Strategy, ...]:
    """Returns every strategy that `prompts` may name, in the order they are worked on."""
    return strategy_lib.known(self.strategies)

  def active(self) -> list[tuple[Strategy, int]]:
    """Returns the strategies with at least one prompt and their numbers of prompts."""
    known = self.known()
    named = {strategy_lib.find(n, known).name: count for n, count in self.prompts.items() if count}
    return [(s, named[s.name]) for s in known if s.name in named]

  def counts(self) -> dict[str, int]:
    """Returns `active` by name."""
    return {strategy.name: count for strategy, count in self.active()}

  def sampled(self) -> dict[str, int]:
    """Returns how many prompts of each strategy are sampled, of which `counts` are asked."""
    times = self.surrogate.prompts if self.surrogate.proposals else 1
    return {name: count * times for name, count in self.counts().items()}

  def samples(self, group: int) -> int:
    """Returns how many first turns are sampled for each prompt, of which a group is asked."""
    return self.surrogate.proposals or group

  def task_text(self, strategy: Strategy, number: int, *, first: str = "") -> str:
    """Returns the auditor's task in a turn.

    Args:
      strategy: how the probe is made.
      number: of the turn, 0 or 1.
      first: what the auditor wrote in the first turn.
    """
    turn = strategy.turns[number]
    text = self.task.get(strategy.task(number), self.task.get(turn.kind, turn.prompt))
    return text.replace("{first}", first)


def _check_kinds(key: str, section: Mapping[str, object], *, known: set[str]) -> None:
  for kind in sorted(set(section) - known):
    raise UserError(f"rollout.{key}.{kind}: unknown kind{did_you_mean(kind, known)}")


@dataclasses.dataclass(frozen=True)
class AuditorPrompt:
  """One image and strategy for the auditor.

  Attributes:
    walk: name of the walk through the pool that it is from; with `uid` it names all randomness of
      the prompt.
    uid: its number in that walk.
    index: the image's place in the pool.
    strategy: how the probe is made.
  """

  walk: Walk
  uid: int
  index: int
  strategy: str


def draw_prompts(
  counts: Mapping[str, int], *, seed: int, walk: Walk, step: int, size: int
) -> list[AuditorPrompt]:
  """Returns the prompts of a step: the next images of an endless walk through the pool.

  Args:
    counts: prompts per strategy.
    seed: the seed of the run.
    walk: the name of the walk, such as ("train",); two walks are independent.
    step: the number of steps that the walk has gone.
    size: images in the pool; each pass over them has an order of its own.
  """
  strategies = [strategy for strategy, count in counts.items() for _ in range(count)]
  first = step * len(strategies)
  return [
    AuditorPrompt(walk, uid, int(_order(seed, walk, uid // size, size)[uid % size]), strategy)
    for uid, strategy in enumerate(strategies, start=first)
  ]


@functools.lru_cache(maxsize=4)
def _order(seed: int, walk: Walk, epoch: int, size: int) -> np.ndarray:
  return streams.rng(seed, "prompts", *walk, epoch).permutation(size)
