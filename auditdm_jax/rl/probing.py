# SPDX-License-Identifier: Apache-2.0
"""Steps 2 to 4 of a rollout: the auditor writes, the image service draws, the auditor asks.

A sample ends in one of three ways: as a probe (an image and a question), malformed by the auditor's
fault, or invalid by nobody's.

Of several processes all know all samples, and each asks its image service for its share of the
images: which image came, or why none did, is gathered once per step.
"""

from collections.abc import Callable, Sequence
import concurrent.futures
import dataclasses
import time
from typing import Any, Protocol

import jax
import numpy as np

from auditdm_jax.core import metrics as metrics_lib
from auditdm_jax.core import runtime
from auditdm_jax.core.config import UserError
from auditdm_jax.rl.batch import Trajectory, Turn
from auditdm_jax.rl.draws import KINDS, Prompt, RolloutConfig, draw_seed
from auditdm_jax.rl.sampler import Sampler
from auditdm_jax.text import prompts as prompts_lib
from auditdm_jax.vlm import Vlm

_SECOND_SLACK = 8  # Re-tokenised text may be a few tokens longer than what was sampled.


class Pool(Protocol):
  """Source images and the data set's own questions about them."""

  def __len__(self) -> int: ...
  def image(self, i: int) -> np.ndarray: ...
  def image_id(self, i: int) -> str: ...
  def questions(self, i: int) -> Sequence[str]: ...


class ImageFailure(Protocol):
  """Why there is no image; `fault` is "auditor" or "service"."""

  reason: Any
  message: str
  fault: str


class ImageResult(Protocol):
  """What the image service made: an image or a failure, and how it was brought to a size."""

  image: np.ndarray | None
  failure: ImageFailure | None
  fit: str


class ImageClient(Protocol):
  """The asking side of the image service; futures never raise."""

  def generate(
    self, prompt: str, *, seed: int, width: int, height: int
  ) -> concurrent.futures.Future: ...
  def edit(
    self, image: np.ndarray, instruction: str, *, seed: int
  ) -> concurrent.futures.Future: ...


@dataclasses.dataclass(frozen=True)
class Begun:
  """First turns, and the images that are being made for them."""

  trajectories: list[Trajectory]
  asked: list[int]  # places of the trajectories that wait for an image
  futures: list[concurrent.futures.Future]  # of this process's share of them
  until: float  # time.monotonic() at which an image is too late


class Prober:
  """Makes probes with the auditor."""

  def __init__(
    self,
    cfg: RolloutConfig,
    *,
    auditor: Vlm,
    temperature: float,
    pool: Pool,
    features: Callable[[Any, Sequence[str]], np.ndarray],
    keep: Callable[[np.ndarray], str],
    client: ImageClient | None,
    well_formed: Callable[[str], bool] | None,
    mesh: jax.sharding.Mesh | None,
  ):
    """Takes what `Rollout` is given."""
    if client is None and any(s != "question" for s in cfg.counts()):
      raise UserError("rollout.prompts: image strategies need an image service")
    if borrows := [s for s in cfg.counts() if s != "question" and s not in prompts_lib.TWO_TURNS]:
      own = runtime.mine(range(len(pool)))
      if mute := [i for i in own if not pool.questions(i)]:
        raise UserError(
          f"rollout.prompts.{borrows[0]} takes the data set's questions, but {len(mute)} of"
          f" {len(own)} images have none, the first is image {mute[0]}"
        )
    self._config, self._pool, self._client = cfg, pool, client
    self._features, self._keep, self._well_formed = features, keep, well_formed
    self._sampler = Sampler(auditor, seed=cfg.seed, temperature=temperature, mesh=mesh)
    self.banned = self._sampler.banned
    self.widths = self._prompt_widths()

  def first_turns(
    self,
    params: Any,
    prompts: Sequence[Prompt],
    *,
    step: int,
    timer: metrics_lib.Timer,
    group: int,
  ) -> Begun:
    """Samples the first replies and requests the images they ask for.

    Args:
      params: tree of the current auditor.
      prompts: P of them; the number per strategy decides which programs are compiled.
      step: of training, for the random numbers.
      timer: counts the seconds of the phases.
      group: G.

    Returns:
      P·G trajectories: all samples of the first prompt, then those of the next.
    """
    with timer("features"):
      source_ids = [self._pool.image_id(p.index) for p in prompts]
      features = self._features(params, source_ids)
    made: dict[int, Trajectory] = {}
    asked: list[int] = []
    futures: list[concurrent.futures.Future] = []
    for kind in KINDS:
      rows = [r for r, p in enumerate(prompts) if prompts_lib.FIRST_TURN[p.strategy] == kind]
      if not rows:
        continue
      task = self._sampler.prompt(self._config.task_text(kind))
      with timer("sample"):
        turns = self._sampler.sample(
          params,
          [task] * len(rows),
          features=features[rows],
          image_ids=[source_ids[r] for r in rows],
          kind=kind,
          width=self.widths[0],
          max_new_tokens=self._config.max_new_tokens[kind],
          step=step,
          turn=0,
          uids=np.array([prompts[r].uid for r in rows]),
          samples=np.tile(np.arange(group), (len(rows), 1)),
        )
      for r, replies in zip(rows, turns):
        for g, turn in enumerate(replies):
          trajectory = self._first(prompts[r], g, turn, source_ids[r])
          made[r * group + g] = trajectory
          if kind != "question" and not trajectory.malformed:
            asked.append(r * group + g)
      for i in runtime.mine(asked)[len(futures) :]:
        futures.append(self._request(made[i], prompts[i // group]))
    until = time.monotonic() + self._config.deadline_s
    return Begun([made[i] for i in range(len(made))], asked, futures, until)

  def second_turns(
    self, params: Any, begun: Begun, *, step: int, timer: metrics_lib.Timer
  ) -> list[Trajectory]:
    """Waits for the images, and lets the auditor ask about them."""
    trajectories = list(begun.trajectories)
    with timer("images"):
      came = [self._received(future, begun.until) for future in begun.futures]
      if begun.asked:
        for process, own in enumerate(runtime.gather(came)):
          places = runtime.mine(begun.asked, process)
          for i, outcome in zip(places, own, strict=True):
            trajectories[i] = dataclasses.replace(trajectories[i], **outcome)
    return self._ask_about_images(params, trajectories, step=step, timer=timer)

  def _first(self, prompt: Prompt, g: int, turn: Turn, source_id: str) -> Trajectory:
    """A trajectory after its first turn."""
    trajectory = Trajectory(
      prompt_id=prompt.uid,
      sample=g,
      strategy=prompt.strategy,
      source_image_id=source_id,
      turns=(turn,),
    )
    trajectory = self._parsed(trajectory, turn, second=False)
    if turn.kind == "question":
      return dataclasses.replace(trajectory, image_id=source_id)
    seed = draw_seed(self._config.seed, prompt.uid, g)
    question = ""
    if prompt.strategy not in prompts_lib.TWO_TURNS:
      asked = self._pool.questions(prompt.index)
      question = asked[seed % len(asked)]
    return dataclasses.replace(trajectory, image_seed=seed, question=question)

  def _parsed(self, trajectory: Trajectory, turn: Turn, *, second: bool) -> Trajectory:
    """Reads a reply into `fields`, or says why it cannot be read."""
    if turn.truncated:
      return dataclasses.replace(trajectory, malformed="no end within the token limit")
    reply = prompts_lib.parse_reply(
      trajectory.strategy, turn.text, second=second, max_chars=self._config.max_chars
    )
    if isinstance(reply, prompts_lib.Malformed):
      return dataclasses.replace(trajectory, malformed=reply.reason)
    fields = trajectory.fields | {reply.kind: reply.text}
    if reply.kind != "question":
      return dataclasses.replace(trajectory, fields=fields)
    malformed = ""
    if self._well_formed is not None and not self._well_formed(reply.text):
      malformed = "not a question of this world"
    return dataclasses.replace(trajectory, fields=fields, question=reply.text, malformed=malformed)

  def _request(self, trajectory: Trajectory, prompt: Prompt) -> concurrent.futures.Future:
    """Hands a caption or an instruction to the image service; images are to be of their source's
    size, and generated ones come at the nearest that is drawn.
    """
    source = self._pool.image(prompt.index)
    if "instruction" in trajectory.fields:
      return self._client.edit(source, trajectory.fields["instruction"], seed=trajectory.image_seed)
    return self._client.generate(
      trajectory.fields["caption"],
      seed=trajectory.image_seed,
      width=source.shape[1],
      height=source.shape[0],
    )

  def _received(self, future: concurrent.futures.Future, until: float) -> dict[str, str]:
    """Waits for an image and files it: what changes of the trajectory, or whose fault it is."""
    try:
      result = future.result(timeout=max(until - time.monotonic(), 0.0))
    except concurrent.futures.TimeoutError:
      future.cancel()
      return {"invalid": f"DEADLINE: no image after {self._config.deadline_s:g} s"}
    if result.failure is None:
      return {"image_id": self._keep(result.image), "fit": result.fit}
    why = f"{result.failure.reason.name}: {result.failure.message}"
    return {"malformed" if result.failure.fault == "auditor" else "invalid": why}

  def _ask_about_images(
    self,
    params: Any,
    trajectories: list[Trajectory],
    *,
    step: int,
    timer: metrics_lib.Timer,
  ) -> list[Trajectory]:
    """Second turns.

    Samples without an image go along on their source, so that shapes stay; they are dropped.
    """
    rows = [i for i, t in enumerate(trajectories) if t.strategy in prompts_lib.TWO_TURNS]
    if not rows:
      return trajectories
    texts = [self._second_prompt(trajectories[i]) for i in rows]
    fallback = self._sampler.prompt(self._config.task_text("question"))[: self.widths[1]]
    ids = [trajectories[i].image_id or trajectories[i].source_image_id for i in rows]
    with timer("features"):
      features = self._features(params, ids)
    with timer("sample"):
      turns = self._sampler.sample(
        params,
        [text if len(text) <= self.widths[1] else fallback for text in texts],
        features=features,
        image_ids=ids,
        kind="question",
        width=self.widths[1],
        max_new_tokens=self._config.max_new_tokens["question"],
        step=step,
        turn=1,
        uids=np.array([trajectories[i].prompt_id for i in rows]),
        samples=np.array([[trajectories[i].sample] for i in rows]),
      )
    result = list(trajectories)
    for i, text, (turn,) in zip(rows, texts, turns):
      trajectory = trajectories[i]
      if trajectory.malformed or trajectory.invalid:
        continue
      if len(text) > self.widths[1]:
        result[i] = dataclasses.replace(trajectory, malformed="too long for the second turn")
        continue
      trajectory = dataclasses.replace(trajectory, turns=(*trajectory.turns, turn))
      result[i] = self._parsed(trajectory, turn, second=True)
    return result

  def _second_prompt(self, trajectory: Trajectory) -> tuple[int, ...]:
    kind = prompts_lib.FIRST_TURN[trajectory.strategy]
    first = trajectory.fields.get(kind, "")
    return self._sampler.prompt(self._config.task_text(f"question-after-{kind}", first=first))

  def _prompt_widths(self) -> tuple[int, int]:
    """Static prompt lengths of first and second turns."""
    kinds = {prompts_lib.FIRST_TURN[s] for s in self._config.counts()}
    first = max(len(self._sampler.prompt(self._config.task_text(kind))) for kind in kinds)
    second = 0
    for strategy in set(self._config.counts()) & prompts_lib.TWO_TURNS:
      kind = prompts_lib.FIRST_TURN[strategy]
      name = f"question-after-{kind}"
      width = len(self._sampler.prompt(self._config.task_text(name)))
      if self._config.task_text(name, first="x") != self._config.task_text(name):
        width += self._config.max_new_tokens[kind] + _SECOND_SLACK
      second = max(second, width)
    return first, second
