# SPDX-License-Identifier: Apache-2.0
"""Steps 2 to 4 of a rollout: the auditor writes, the image service draws, the auditor asks.

A sample ends in one of three ways: as a probe (an image and a question), malformed by the auditor's
fault, or invalid by nobody's.
"""

from collections import Counter
from collections.abc import Callable, Sequence
import concurrent.futures
import dataclasses
import itertools
from typing import Any, Protocol

import numpy as np

from auditdm_jax.core import metrics as metrics_lib
from auditdm_jax.core import runtime, streams
from auditdm_jax.core.config import TryLater, UserError
from auditdm_jax.endpoints.failures import one_line
from auditdm_jax.rl import shapes
from auditdm_jax.rl.batch import AuditorReply, Trajectory
from auditdm_jax.rl.drawing import Drawing
from auditdm_jax.rl.draws import AuditorPrompt, RolloutConfig
from auditdm_jax.rl.sampler import Sampler
from auditdm_jax.rl.sight import Sight
from auditdm_jax.rl.strategy import SERVED, Malformed, Turn


class RolloutError(TryLater):
  """Too many samples of a step were invalid, which is the image service's fault."""


class Pool(Protocol):
  """Source images and the data set's own questions about them."""

  def __len__(self) -> int: ...
  def image(self, i: int) -> np.ndarray: ...
  def image_id(self, i: int) -> str: ...
  def questions(self, i: int) -> Sequence[str]: ...


class Chooser(Protocol):
  """Which first turns are gone on with, of more than are wanted.

  Attributes:
    proposals: how many are sampled for each prompt.
  """

  @property
  def proposals(self) -> int: ...
  def pick(
    self, proposals: Sequence[Sequence[Trajectory]], *, size: int
  ) -> tuple[list[list[Trajectory]], list[Trajectory]]:
    """Returns `size` of a prompt's, for the prompts that are kept in their order, and the rest."""
    ...


@dataclasses.dataclass(frozen=True)
class Coauthor:
  """The auditor before training, which writes a share of the first turns.

  Attributes:
    params: tree of it, placed as those of the auditor.
    samples: how many of each prompt it writes: the last ones.
  """

  params: Any
  samples: int


@dataclasses.dataclass(frozen=True)
class Begun:
  """First turns, and the images that are being made for them."""

  trajectories: list[Trajectory]
  indices: list[int]  # places of their sources in the pool
  waiting: list[int]  # places of the trajectories that wait for an image
  futures: list[concurrent.futures.Future]  # of this process's share of them
  until: float  # time.monotonic() at which an image is too late
  dropped: list[Trajectory]  # first turns that are not gone on with


class Prober:
  """Makes probes with the auditor."""

  def __init__(
    self,
    config: RolloutConfig,
    calls: shapes.Calls,
    *,
    pool: Pool,
    sampler: Sampler,
    sight: Sight,
    drawing: Drawing | None = None,
    well_formed: Callable[[str], bool] | None = None,
  ):
    """Connects the auditor, the images and the image service.

    Args:
      config: prompts and limits.
      calls: static sizes of what is sampled.
      pool: source images.
      sampler: the auditor's pen.
      sight: the auditor's eyes.
      drawing: the image service; needed by strategies that make images.
      well_formed: says whether a question is one at all (never whether it is answerable).

    Raises:
      UserError: a strategy lacks what it needs.
    """
    self._strategies = {s.name: s for s, _ in config.active()}
    if drawing is None and any(s.makes for s in self._strategies.values()):
      raise UserError("rollout.prompts: image strategies need an image service")
    if borrows := [s.name for s in self._strategies.values() if s.question == "data"]:
      own = runtime.mine(range(len(pool)))
      if mute := [i for i in own if not pool.questions(i)]:
        raise UserError(
          f"rollout.prompts.{borrows[0]} takes the data set's questions, but {len(mute)} of"
          f" {len(own)} images have none, the first is image {mute[0]}"
        )
    self.config, self.pool, self.sampler, self.sight = config, pool, sampler, sight
    self._calls, self._drawing, self._well_formed = calls, drawing, well_formed

  def generate(
    self,
    params: Any,
    prompts: Sequence[AuditorPrompt],
    *,
    timer: metrics_lib.Timer,
    group: int,
  ) -> list[Trajectory]:
    """Lets the auditor make probes: both turns, and the images between them."""
    begun = self.first_turns(params, prompts, timer=timer, group=group)
    return self.second_turns(params, begun, timer=timer)

  def first_turns(
    self,
    params: Any,
    prompts: Sequence[AuditorPrompt],
    *,
    timer: metrics_lib.Timer,
    group: int,
    chooser: Chooser | None = None,
    coauthor: Coauthor | None = None,
  ) -> Begun:
    """Samples the first replies and requests the images they ask for.

    Args:
      params: tree of the current auditor.
      prompts: B of them; the number per strategy decides which programs are compiled.
      timer: counts the seconds of the phases.
      group: G. A sweep of the pool takes 1.
      chooser: its number of proposals is sampled instead of G, and it keeps G of them; it may leave
        out whole prompts.
      coauthor: writes some of these samples instead of the auditor; None = nobody does.

    Returns:
      G trajectories of each prompt that is kept: all of the first prompt, then those of the next.
    """
    drawn = chooser.proposals if chooser is not None else group
    own = drawn if coauthor is None else drawn - coauthor.samples
    source_ids = [self.pool.image_id(p.index) for p in prompts]
    with timer("features"):
      authors = [(params, self.sight.features(params, source_ids), range(own))]
      if coauthor is not None:
        authors.append((coauthor.params, self.sight.before(source_ids), range(own, drawn)))
    made: dict[int, Trajectory] = {}
    waiting: list[int] = []
    futures: list[concurrent.futures.Future] = []
    dropped: list[Trajectory] = []
    strategies = [self._strategies[p.strategy] for p in prompts]
    for kind, call in self._calls.of_turn(0).items():
      rows = [r for r, s in enumerate(strategies) if s.turns[0].kind == kind]
      if not rows:
        continue
      tasks = [self.sampler.prompt(self.config.task_text(strategies[r], 0)) for r in rows]
      with timer("sample"):
        written = [
          self.sampler.sample(
            by,
            tasks,
            features=features[rows],
            image_ids=[source_ids[r] for r in rows],
            kind=kind,
            width=call.width,
            max_new_tokens=call.new,
            walk=prompts[0].walk,
            turn=0,
            uids=np.array([prompts[r].uid for r in rows]),
            samples=np.tile(numbers, (len(rows), 1)),
          )
          for by, features, numbers in authors
        ]
      samples = [
        [
          self._first(prompts[r], g, reply, source_ids[r])
          for g, reply in enumerate(itertools.chain.from_iterable(of_prompt))
        ]
        for r, of_prompt in zip(rows, zip(*written))  # What is more than the rows is padding.
      ]
      if chooser is not None:
        with timer("surrogate"):
          samples, rest = chooser.pick(samples, size=group)
        dropped += rest
        kept = {row[0].prompt_id for row in samples}
        rows = [r for r in rows if prompts[r].uid in kept]
      for r, row in zip(rows, samples, strict=True):
        for g, trajectory in enumerate(row):
          made[r * group + g] = trajectory
          if strategies[r].makes and not trajectory.malformed:
            waiting.append(r * group + g)
      if self._drawing is not None:  # At once: the service is slow.
        for i in runtime.mine(waiting)[len(futures) :]:
          source = self.pool.image(prompts[i // group].index)
          futures.append(self._drawing.request(made[i], strategies[i // group], source))
    until = self._drawing.until() if self._drawing is not None else 0.0
    # Prompts that are left out leave no gap.
    places = {i: place for place, i in enumerate(sorted(made))}
    return Begun(
      [made[i] for i in places],
      [prompts[i // group].index for i in places],
      waiting=[places[i] for i in waiting],
      futures=futures,
      until=until,
      dropped=dropped,
    )

  def _first(
    self, prompt: AuditorPrompt, g: int, reply: AuditorReply, source_id: str
  ) -> Trajectory:
    """Returns a trajectory after its first turn."""
    strategy = self._strategies[prompt.strategy]
    trajectory = Trajectory(
      walk=prompt.walk,
      prompt_id=prompt.uid,
      sample=g,
      strategy=prompt.strategy,
      source_image_id=source_id,
      turns=(reply,),
    )
    trajectory = self._parsed(trajectory, reply, strategy.turns[0])
    draw = (*prompt.walk, prompt.uid, g)
    changes: dict[str, Any] = {}
    if strategy.question == "data":
      asked = self.pool.questions(prompt.index)
      place = streams.rng(self.config.seed, "borrowed", *draw).integers(len(asked))
      changes["question"] = asked[int(place)]
    if not strategy.makes:
      return dataclasses.replace(trajectory, image_id=source_id, **changes)
    if not trajectory.malformed:
      text = trajectory.fields[strategy.turns[0].kind]
      changes["fields"] = trajectory.fields | {SERVED[strategy.makes]: text}
    changes["image_seed"] = streams.word(self.config.seed, "image", *draw)
    return dataclasses.replace(trajectory, **changes)

  def _parsed(self, trajectory: Trajectory, reply: AuditorReply, turn: Turn) -> Trajectory:
    """Reads a reply into `fields`, or says why it cannot be read."""
    if reply.truncated:
      return dataclasses.replace(trajectory, malformed="no end within the token limit")
    text = turn.parse(reply.text, self.config.max_chars)
    if isinstance(text, Malformed):
      return dataclasses.replace(trajectory, malformed=text.reason)
    fields = trajectory.fields | {turn.kind: text}
    if turn.kind != "question":
      return dataclasses.replace(trajectory, fields=fields)
    malformed = ""
    if self._well_formed is not None and not self._well_formed(text):
      malformed = "not a question of this world"
    return dataclasses.replace(trajectory, fields=fields, question=text, malformed=malformed)

  def draw(self, trajectories: Sequence[Trajectory], indices: Sequence[int]) -> list[Trajectory]:
    """Has the images made of samples that the auditor did not write.

    Args:
      trajectories: with what is to be made in `fields`.
      indices: places of their sources in the pool.
    """
    if self._drawing is None:
      raise ValueError("there is no image service")
    places = list(range(len(trajectories)))
    futures = [
      self._drawing.request(
        trajectories[i], self._strategies[trajectories[i].strategy], self.pool.image(indices[i])
      )
      for i in runtime.mine(places)
    ]
    until = self._drawing.until()
    return self._drawing.received(trajectories, places, futures, until=until)

  def second_turns(
    self, params: Any, begun: Begun, *, timer: metrics_lib.Timer, questions: int = 1
  ) -> list[Trajectory]:
    """Waits for the images, and lets the auditor write its second turns.

    Args:
      params: tree of the current auditor.
      begun: first turns.
      timer: counts the seconds of the phases.
      questions: probes about each image that is made, or of each first turn that has a second; they
        stand together. Of the data set's questions about a source there may be fewer.
    """
    trajectories = begun.trajectories
    with timer("images"):
      if begun.waiting and self._drawing is not None:
        trajectories = self._drawing.received(
          trajectories, begun.waiting, begun.futures, until=begun.until
        )
    about = [
      self._several(t, index, questions)
      for t, index in zip(trajectories, begun.indices, strict=True)
    ]
    for call in self._calls.of_turn(1).values():
      about = self._second(params, about, call, timer=timer)
    return [t for several in about for t in several]

  def _several(self, trajectory: Trajectory, index: int, n: int) -> list[Trajectory]:
    """Returns what will be `n` probes about the image of a trajectory, or the trajectory itself."""
    strategy = self._strategies[trajectory.strategy]
    if n == 1 or (len(strategy.turns) == 1 and not strategy.makes):
      return [trajectory]
    first = trajectory.sample * n
    several = [dataclasses.replace(trajectory, sample=first + i) for i in range(n)]
    if strategy.question == "own":
      return several
    asked = list(dict.fromkeys(self.pool.questions(index)))
    start = asked.index(trajectory.question)
    return [
      dataclasses.replace(t, question=question)
      for t, question in zip(several, asked[start:] + asked[:start])
    ]

  def _second(
    self,
    params: Any,
    trajectories: Sequence[Sequence[Trajectory]],
    call: shapes.SampleCall,
    *,
    timer: metrics_lib.Timer,
  ) -> list[list[Trajectory]]:
    """Second turns of one kind; those about one image stand together.

    Samples without an image go along on their source, so that shapes stay; they are dropped.
    """
    result = [list(several) for several in trajectories]
    turns = {name: s.turns[1] for name, s in self._strategies.items() if len(s.turns) == 2}
    rows = [
      i
      for i, (t, *_) in enumerate(trajectories)
      if t.strategy in turns and turns[t.strategy].kind == call.kind
    ]
    if not rows:
      return result
    firsts = [trajectories[i][0] for i in rows]
    prompts = [self._second_prompt(t) for t in firsts]
    fits = [len(prompt) <= call.width for prompt in prompts]
    ids = [_looked_at(t, turns[t.strategy]) for t in firsts]
    with timer("features"):
      features = self.sight.features(params, ids)
    replies = []
    with timer("sample"):
      for part in _parts(len(rows), most=call.prompts // len(trajectories[rows[0]])):
        replies += self.sampler.sample(
          params,
          [prompts[r] if fits[r] else self._second_prompt(firsts[r], quote=False) for r in part],
          features=features[part],
          image_ids=[ids[r] for r in part],
          kind=call.kind,
          width=call.width,
          max_new_tokens=call.new,
          walk=firsts[0].walk,
          turn=1,
          uids=np.array([firsts[r].prompt_id for r in part]),
          samples=np.array([[t.sample for t in trajectories[rows[r]]] for r in part]),
        )
    for i, ok, row in zip(rows, fits, replies):  # What is more than the rows is padding.
      result[i] = [self._answered(t, reply, fits=ok) for t, reply in zip(result[i], row)]
    return result

  def _answered(self, trajectory: Trajectory, reply: AuditorReply, *, fits: bool) -> Trajectory:
    """Returns a trajectory after its second turn."""
    if trajectory.malformed or trajectory.invalid:
      return trajectory
    if not fits:
      return dataclasses.replace(trajectory, malformed="too long for the second turn")
    turn = self._strategies[trajectory.strategy].turns[1]
    trajectory = dataclasses.replace(trajectory, turns=(*trajectory.turns, reply))
    return self._parsed(trajectory, reply, turn)

  def _second_prompt(self, trajectory: Trajectory, *, quote: bool = True) -> tuple[int, ...]:
    """Token ids of the second turn's task, with or without the text of the first turn."""
    strategy = self._strategies[trajectory.strategy]
    first = trajectory.fields.get(strategy.turns[0].kind, "") if quote else ""
    return self.sampler.prompt(self.config.task_text(strategy, 1, first=first))


def _parts(n: int, *, most: int) -> list[list[int]]:
  """Cuts `n` rows into calls of at most `most`, all of one size: the last row may be repeated."""
  size = max(min(n, most), 1)
  return [[min(i, n - 1) for i in range(start, start + size)] for start in range(0, n, size)]


def _looked_at(trajectory: Trajectory, turn: Turn) -> str:
  """Id of the image that a turn is about."""
  made = trajectory.image_id if turn.about == "made" else ""
  return made or trajectory.source_image_id


def check_valid(trajectories: Sequence[Trajectory], most: float, *, step: int) -> None:
  """Stops a run that would learn from what is left of its samples.

  Args:
    trajectories: samples of a step.
    most: the share of them that may be invalid.
    step: its number, for the error.

  Raises:
    RolloutError: too many samples are invalid.
  """
  reasons = Counter(t.invalid for t in trajectories if t.invalid)
  invalid = sum(reasons.values())
  if invalid > most * len(trajectories):
    listed = "; ".join(f"{n} x {one_line(reason)}" for reason, n in reasons.most_common(5))
    raise RolloutError(
      f"step {step}: {invalid} of {len(trajectories)} samples are invalid, more than {most:.0%}:"
      f" {listed}. Is the image service running? The same command continues"
    )
