# SPDX-License-Identifier: Apache-2.0
"""The device calls of a step and their static sizes, from the config alone.

The rollout runs by them and `plan` compiles by them, so that what is planned is what is run.

Calls of the sampler and parts of the learner's batch have exactly these sizes in every step. Images
to encode and probes to answer are at most so many: samples may be malformed, and an image or a
question that was met before costs nothing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import itertools

from auditdm_jax.rl.draws import RolloutConfig
from auditdm_jax.rl.strategy import Strategy

_WORTH_A_PART = 0.8  # A further part has to bring the tokens down to this share.
_QUOTE_SLACK = 8  # A quoted text may be tokenised into a few more tokens than were sampled.


@dataclasses.dataclass(frozen=True)
class SampleCall:
  """One call of the auditor's sampler.

  Attributes:
    turn: 0 or 1.
    kind: what is written.
    prompts: rows of the call; first turns have a group of samples in each, second turns one.
    group: samples of a prompt; of what a surrogate chooses from only some are kept, of prompts too.
    width: prompt tokens, image included.
    new: tokens of the longest reply.
  """

  turn: int
  kind: str
  prompts: int
  group: int
  width: int
  new: int


@dataclasses.dataclass(frozen=True)
class Part:
  """Learner rows of one shape, see `rl.batch`.

  Attributes:
    turn: 0 or 1.
    kinds: of the replies that are learned from here.
    rows: padded.
    per_row: completions of a row.
    prompt: tokens of the longest prompt.
    completion: tokens of the longest reply.
  """

  turn: int
  kinds: tuple[str, ...]
  rows: int
  per_row: int
  prompt: int
  completion: int


@dataclasses.dataclass(frozen=True)
class BankCall:
  """Probes that target and references are asked about at one time.

  Attributes:
    images: those that none of them has seen before.
    probes: questions about them.
  """

  images: int
  probes: int


@dataclasses.dataclass(frozen=True)
class Calls:
  """What a round of prompts calls, and the learner's batch.

  Attributes:
    sample: calls of the sampler, in their order.
    encoded: images that the auditor sees for the first time: the sources, and the made ones that
      it asks about.
    asked: probes about the sources, asked while images are made, and the others.
    images: unique images of the learner's batch.
    parts: rows of the learner's batch, of each turn one or more parts.
  """

  sample: tuple[SampleCall, ...]
  encoded: tuple[int, ...]
  asked: tuple[BankCall, ...]
  images: int
  parts: tuple[Part, ...]

  def of_turn(self, turn: int) -> dict[str, SampleCall]:
    """Returns the sampler's calls of a turn by kind."""
    return {call.kind: call for call in self.sample if call.turn == turn}


def calls_of(
  config: RolloutConfig,
  group: int,
  *,
  length: Callable[[str], int],
  per_row: int = 1,
  padded: Callable[[int], int] = lambda rows: rows,
) -> Calls:
  """Returns the calls of a step.

  Args:
    config: prompts by strategy, and lengths.
    group: samples of a prompt that are asked.
    length: tokens of a prompt with this task, image included.
    per_row: completions that share a learner row, a divisor of `group`.
    padded: the number of learner rows that a part of so many rows is padded to.
  """
  active = config.active()
  firsts, seconds = _first_calls(config, group, length), _second_calls(config, group, length)
  drawn = sum(count for _, count in active)
  again = sum(call.prompts for call in seconds)
  rows = {call.kind: 0 for call in firsts}
  for strategy, count in active:
    rows[strategy.turns[0].kind] += count * group // per_row
  parts = _parts(firsts, rows, per_row=per_row, padded=padded)
  if seconds:
    parts += _parts(seconds, {c.kind: c.prompts for c in seconds}, per_row=1, padded=padded)
  looked_at = group * sum(n for s, n in active if s.turns[-1].about == "made")
  early = sum(n for s, n in active if is_early(s))
  late = sum(n * (group if s.makes else 1) for s, n in active if not is_early(s))
  asked = (BankCall(early, early * group), BankCall(late, (drawn - early) * group))
  return Calls(
    sample=(*firsts, *seconds),
    encoded=tuple(n for n in (sum(config.sampled().values()), looked_at) if n),
    asked=tuple(a for a in asked if a.probes),
    images=drawn + again,
    parts=tuple(parts),
  )


def is_early(strategy: Strategy) -> bool:
  """Whether a probe is complete after the first turn, so that nothing is waited for."""
  return not strategy.makes and len(strategy.turns) == 1


def _first_calls(
  config: RolloutConfig, group: int, length: Callable[[str], int]
) -> list[SampleCall]:
  """One call per kind of first turn; all have the width of the longest task."""
  active = config.active()
  width = max(length(config.task_text(s, 0)) for s, _ in active)
  prompts: dict[str, int] = {}
  for strategy, _ in active:
    kind = strategy.turns[0].kind
    prompts[kind] = prompts.get(kind, 0) + config.sampled()[strategy.name]
  return [
    SampleCall(0, kind, count, config.samples(group), width, config.max_new_tokens[kind])
    for kind, count in prompts.items()
  ]


def _second_calls(
  config: RolloutConfig, group: int, length: Callable[[str], int]
) -> list[SampleCall]:
  """One call per kind of second turn, whose prompts are all different."""
  active = [(s, count) for s, count in config.active() if len(s.turns) == 2]
  width, prompts = 0, {}
  for strategy, count in active:
    task, kind = config.task_text(strategy, 1), strategy.turns[1].kind
    tokens = length(task)
    if config.task_text(strategy, 1, first="x") != task:
      tokens += config.max_new_tokens[strategy.turns[0].kind] + _QUOTE_SLACK
    width = max(width, tokens)
    prompts[kind] = prompts.get(kind, 0) + count * group
  return [
    SampleCall(1, kind, count, 1, width, config.max_new_tokens[kind])
    for kind, count in prompts.items()
  ]


def _parts(
  calls: list[SampleCall],
  rows: Mapping[str, int],
  *,
  per_row: int,
  padded: Callable[[int], int],
) -> list[Part]:
  """Returns the parts of a turn: kinds apart where that leaves out enough padding.

  Short replies are padded to the longest of their part, and rows to a number that devices and
  micro-batches divide. Each part is one more to compile.

  Args:
    calls: of this turn, one per kind.
    rows: by kind, before they are padded.
    per_row: completions of a row.
    padded: as that of `calls_of`.
  """
  calls = sorted(calls, key=lambda call: call.new)

  def part(some: Sequence[SampleCall]) -> Part:
    count = padded(sum(rows[call.kind] for call in some))
    kinds = tuple(call.kind for call in some)
    return Part(some[0].turn, kinds, count, per_row, some[0].width, max(c.new for c in some))

  def ways(count: int) -> Iterator[list[Part]]:
    for cuts in itertools.combinations(range(1, len(calls)), count - 1):
      yield [part(calls[i:j]) for i, j in itertools.pairwise((0, *cuts, len(calls)))]

  def tokens(parts: list[Part]) -> int:
    return sum(p.rows * (p.prompt + p.per_row * (p.completion - 1)) for p in parts)

  chosen = [part(calls)]
  for count in range(2, len(calls) + 1):
    better = min(ways(count), key=tokens)
    if tokens(better) > _WORTH_A_PART * tokens(chosen):
      break
    chosen = better
  return chosen
