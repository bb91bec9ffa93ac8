# SPDX-License-Identifier: Apache-2.0
"""One step of GRPO up to the learner's batch; the code is in the order of the steps.

  1. `draw_prompts`   (image, strategy) prompts of the step: a pure function of (seed, step).
  2. `generate`       encode each image once, sample G replies per prompt, image strategies first.
  3.                  parse each reply; a malformed one is the auditor's fault: reward 0, it counts.
  4.                  image strategies: the text goes to the image service the moment it is parsed.
                      The service's fault is nobody's: the sample is invalid. `edit` and `generate`
                      then ask about the new image.
  5. `judge`          target and references answer; the verdict says whether they disagree.
  6. `score`          verdict -> reward terms -> reward.
  7. `pack`           group advantages, and all turns as the learner's rows.

Strategies: `question` (Q*, I) · `edit` (Q*, I_e) · `generate` (Q*, I_g) · `edit-only` (Q, I_e) ·
`generate-only` (Q, I_g), where Q is a question of the data set about the source image.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
import concurrent.futures
import dataclasses
import functools
from typing import Any, Protocol

import jax
import numpy as np

from auditdm_jax.audit.answer import ModelBank
from auditdm_jax.core import metrics as metrics_lib
from auditdm_jax.core.config import UserError, did_you_mean
from auditdm_jax.rl import batch as batch_lib
from auditdm_jax.rl import grpo as grpo_lib
from auditdm_jax.rl import records as records_lib
from auditdm_jax.rl import reward as reward_lib
from auditdm_jax.rl.batch import Trajectory, Turn
from auditdm_jax.rl.sampler import Sampler
from auditdm_jax.text import prompts as prompts_lib
from auditdm_jax.vlm import Vlm

_KINDS = ("instruction", "caption", "question")  # Texts for images first: the service is slow.
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
  """What the image service made: an image or a failure."""

  image: np.ndarray | None
  failure: ImageFailure | None


class ImageClient(Protocol):
  """The asking side of the image service; futures never raise."""

  def generate(
    self, prompt: str, *, seed: int, width: int, height: int
  ) -> concurrent.futures.Future: ...
  def edit(
    self, image: np.ndarray, instruction: str, *, seed: int
  ) -> concurrent.futures.Future: ...


class RolloutError(RuntimeError):
  """Too many samples of a step were invalid."""


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
    seed: of everything that is drawn.
  """

  prompts: dict[str, int] = dataclasses.field(default_factory=lambda: {"question": 32})
  task: dict[str, str] = dataclasses.field(default_factory=dict)
  max_new_tokens: dict[str, int] = dataclasses.field(
    default_factory=lambda: {"question": 64, "caption": 128, "instruction": 64}
  )
  max_chars: int = 400
  max_invalid: float = 0.2
  seed: int = 0

  def __post_init__(self):
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
    if unknown := set(self.max_new_tokens) - set(_KINDS):
      hint = did_you_mean(sorted(unknown)[0], _KINDS)
      raise UserError(f"rollout.max_new_tokens.{sorted(unknown)[0]}: unknown kind{hint}")

  def counts(self) -> dict[str, int]:
    """Strategies with at least one prompt, in the order they are worked on."""
    named = {name.replace("_", "-"): count for name, count in self.prompts.items() if count}
    order = sorted(named, key=lambda s: (_KINDS.index(prompts_lib.FIRST_TURN[s]), s))
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


@dataclasses.dataclass(frozen=True)
class StepResult:
  """What a step hands on: to the learner, to the store, to the log."""

  batch: batch_lib.LearnerBatch
  records: list[dict[str, Any]]
  metrics: dict[str, float]
  seconds: dict[str, float]


class Rollout:
  """Makes probes with the auditor and rewards them."""

  def __init__(
    self,
    cfg: RolloutConfig,
    grpo: grpo_lib.GrpoConfig,
    reward: reward_lib.RewardConfig,
    *,
    auditor: Vlm,
    pool: Pool,
    bank: ModelBank,
    features: Callable[[Sequence[str]], np.ndarray],
    load: Callable[[str], np.ndarray],
    keep: Callable[[np.ndarray], str],
    client: ImageClient | None = None,
    key_of: Callable[[str, str], Iterable[str]] | None = None,
    well_formed: Callable[[str], bool] | None = None,
    oracle: Callable[[np.ndarray, str], str | None] | None = None,
    row_multiple: int = 1,
    mesh: jax.sharding.Mesh | None = None,
  ):
    """Connects what the stage has opened.

    Args:
      cfg: prompts.
      grpo: group size, temperature, advantages.
      reward: reward terms.
      auditor: architecture, tokenizer and template; params are given to each step.
      pool: source images.
      bank: target and references.
      features: image ids -> f32[N,patches,D] of the auditor's tower, cached by the caller.
      load: image id -> u8[H,W,3], for pool images and made ones.
      keep: stores a made image and returns its id.
      client: the image service; needed by the image strategies.
      key_of: (question, consensus) -> keys of a find for novelty; needed if that is on.
      well_formed: says whether a question is one at all (never whether it is answerable).
      oracle: (image, question) -> the truth or None; goes to the records only.
      row_multiple: learner rows are padded to a multiple of it.
      mesh: splits the sampler's prompts.

    Raises:
      UserError: a strategy or term lacks what it needs.
    """
    if client is None and any(s != "question" for s in cfg.counts()):
      raise UserError("rollout.prompts: image strategies need an image service")
    if reward.novelty != "off" and key_of is None:
      raise UserError("reward.novelty needs keys of finds, which this world does not define")
    self.config, self._grpo, self._reward = cfg, grpo, reward
    self._pool, self._bank, self._client = pool, bank, client
    self._features, self._load, self._keep = features, load, keep
    self._key_of, self._well_formed, self._oracle = key_of, well_formed, oracle
    self._row_multiple = row_multiple
    self._sampler = Sampler(auditor, seed=cfg.seed, temperature=grpo.temperature, mesh=mesh)
    self.banned = self._sampler.banned
    self.novelty = reward_lib.Novelty(reward)
    self._widths = self._prompt_widths()

  def step(self, params: Any, step: int) -> StepResult:
    """Steps 1 to 7 with the current params.

    Raises:
      RolloutError: too many samples are invalid.
    """
    timer = metrics_lib.Timer()
    prompts = draw_prompts(
      self.config.counts(), seed=self.config.seed, step=step, size=len(self._pool)
    )
    trajectories = self.generate(params, prompts, step=step, timer=timer)
    self.check(trajectories, step)
    with timer("answers"):
      trajectories = self.judge(trajectories)
    with timer("reward"):
      trajectories = self.score(trajectories)
      truth = [self._truth(t) for t in trajectories]
    with timer("pack"):
      batch, advantages = self.pack(trajectories)
    rows = [
      records_lib.completion(t, step=step, advantage=float(a), truth=o)
      for t, a, o in zip(trajectories, advantages.reshape(-1), truth)
    ]
    metrics = records_lib.metrics(rows, group_size=self._grpo.group_size)
    return StepResult(batch, rows, metrics, timer.seconds)

  def identity(self) -> list[Any]:
    """What decides the samples and rewards: a resumed run must have the same."""
    return [self.config, self._reward, self._bank.target, self._bank.references, len(self._pool)]

  # ---- 2 to 4

  def generate(
    self,
    params: Any,
    prompts: Sequence[Prompt],
    *,
    step: int,
    timer: metrics_lib.Timer,
    group: int | None = None,
  ) -> list[Trajectory]:
    """Lets the auditor make probes.

    Args:
      params: tree of the current auditor.
      prompts: P of them; the number per strategy decides which programs are compiled.
      step: of training, for the random numbers.
      timer: counts the seconds of the phases.
      group: G; None is that of GRPO. A sweep of the pool takes 1.

    Returns:
      P·G trajectories: all samples of the first prompt, then those of the next.
    """
    group = group or self._grpo.group_size
    with timer("features"):
      source_ids = [self._pool.image_id(p.index) for p in prompts]
      features = self._features(source_ids)
    made: dict[int, Trajectory] = {}
    futures: dict[int, concurrent.futures.Future] = {}
    for kind in _KINDS:
      rows = [r for r, p in enumerate(prompts) if prompts_lib.FIRST_TURN[p.strategy] == kind]
      if not rows:
        continue
      task = self._sampler.prompt(self.config.task_text(kind))
      with timer("sample"):
        turns = self._sampler.sample(
          params,
          [task] * len(rows),
          features=features[rows],
          image_ids=[source_ids[r] for r in rows],
          kind=kind,
          width=self._widths[0],
          max_new_tokens=self.config.max_new_tokens[kind],
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
            futures[r * group + g] = self._request(trajectory, prompts[r])
    with timer("images"):
      for i, future in futures.items():
        made[i] = self._received(made[i], future.result())
    trajectories = [made[i] for i in range(len(made))]
    return self._ask_about_images(params, prompts, trajectories, step=step, timer=timer)

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
    seed = draw_seed(self.config.seed, prompt.uid, g)
    question = ""
    if prompt.strategy not in prompts_lib.TWO_TURNS:
      asked = self._pool.questions(prompt.index)
      if not asked:
        raise UserError(
          f"strategy {prompt.strategy!r} needs the data set's questions, but image {prompt.index}"
          " has none"
        )
      question = asked[seed % len(asked)]
    return dataclasses.replace(trajectory, image_seed=seed, question=question)

  def _parsed(self, trajectory: Trajectory, turn: Turn, *, second: bool) -> Trajectory:
    """Reads a reply into `fields`, or says why it cannot be read."""
    if turn.truncated:
      return dataclasses.replace(trajectory, malformed="no end within the token limit")
    reply = prompts_lib.parse_reply(
      trajectory.strategy, turn.text, second=second, max_chars=self.config.max_chars
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
    """Hands a caption or an instruction to the image service; images have their source's size."""
    source = self._pool.image(prompt.index)
    if "instruction" in trajectory.fields:
      return self._client.edit(source, trajectory.fields["instruction"], seed=trajectory.image_seed)
    return self._client.generate(
      trajectory.fields["caption"],
      seed=trajectory.image_seed,
      width=source.shape[1],
      height=source.shape[0],
    )

  def _received(self, trajectory: Trajectory, result: ImageResult) -> Trajectory:
    """Files the image, or whose fault it is that there is none."""
    if result.failure is None:
      return dataclasses.replace(trajectory, image_id=self._keep(result.image))
    why = f"{result.failure.reason.name}: {result.failure.message}"
    if result.failure.fault == "auditor":
      return dataclasses.replace(trajectory, malformed=why)
    return dataclasses.replace(trajectory, invalid=why)

  def _ask_about_images(
    self,
    params: Any,
    prompts: Sequence[Prompt],
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
    fallback = self._sampler.prompt(self.config.task_text("question"))[: self._widths[1]]
    ids = [trajectories[i].image_id or trajectories[i].source_image_id for i in rows]
    with timer("features"):
      features = self._features(ids)
    with timer("sample"):
      turns = self._sampler.sample(
        params,
        [text if len(text) <= self._widths[1] else fallback for text in texts],
        features=features,
        image_ids=ids,
        kind="question",
        width=self._widths[1],
        max_new_tokens=self.config.max_new_tokens["question"],
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
      if len(text) > self._widths[1]:
        result[i] = dataclasses.replace(trajectory, malformed="too long for the second turn")
        continue
      trajectory = dataclasses.replace(trajectory, turns=(*trajectory.turns, turn))
      result[i] = self._parsed(trajectory, turn, second=True)
    return result

  def _second_prompt(self, trajectory: Trajectory) -> tuple[int, ...]:
    kind = prompts_lib.FIRST_TURN[trajectory.strategy]
    first = trajectory.fields.get(kind, "")
    return self._sampler.prompt(self.config.task_text(f"question-after-{kind}", first=first))

  def _prompt_widths(self) -> tuple[int, int]:
    """Static prompt lengths of first and second turns."""
    kinds = {prompts_lib.FIRST_TURN[s] for s in self.config.counts()}
    first = max(len(self._sampler.prompt(self.config.task_text(kind))) for kind in kinds)
    second = 0
    for strategy in set(self.config.counts()) & prompts_lib.TWO_TURNS:
      kind = prompts_lib.FIRST_TURN[strategy]
      name = f"question-after-{kind}"
      width = len(self._sampler.prompt(self.config.task_text(name)))
      if self.config.task_text(name, first="x") != self.config.task_text(name):
        width += self.config.max_new_tokens[kind] + _SECOND_SLACK
      second = max(second, width)
    return first, second

  # ---- 5 and 6

  def check(self, trajectories: Sequence[Trajectory], step: int) -> None:
    """Stops a run that would learn from what is left of its samples."""
    reasons = Counter(t.invalid for t in trajectories if t.invalid)
    invalid = sum(reasons.values())
    if invalid > self.config.max_invalid * len(trajectories):
      listed = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(5))
      raise RolloutError(
        f"step {step}: {invalid} of {len(trajectories)} samples are invalid, more than "
        f"{self.config.max_invalid:.0%}: {listed}"
      )

  def judge(self, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Asks target and references about every probe that came to be."""
    result = list(trajectories)
    rows = [i for i, t in enumerate(trajectories) if not t.malformed and not t.invalid]
    if not rows:
      return result
    asked = [trajectories[i] for i in rows]
    verdicts = self._bank.verdicts(
      self._load, [t.question for t in asked], image_ids=[t.image_id for t in asked]
    )
    for i, verdict in zip(rows, verdicts):
      result[i] = dataclasses.replace(
        trajectories[i], verdict=verdict, answers=dict(verdict.answers)
      )
    return result

  def score(self, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Reward terms and novelty weights; counts the finds of the step."""
    result, finds = [], []
    for trajectory in trajectories:
      disagrees = trajectory.verdict is not None and trajectory.verdict.disagreement
      tokens = [int(x) for turn in trajectory.turns for x in turn.tokens[: turn.length]]
      parts = {
        "disagreement": reward_lib.disagreement(
          parsed=not trajectory.malformed, disagrees=disagrees
        ),
        "repetition": reward_lib.repetition(tokens),
        "length": reward_lib.length(len(tokens), limit=self._reward.length_limit),
      }
      reward = float("nan") if trajectory.invalid else reward_lib.total(self._reward, parts)
      weight = 1.0
      if disagrees and self._key_of is not None:
        keys = tuple(self._key_of(trajectory.question, trajectory.verdict.consensus))
        weight = self.novelty.weight(keys)
        finds.append(keys)
      result.append(dataclasses.replace(trajectory, parts=parts, reward=reward, weight=weight))
    self.novelty.update(finds)
    return result

  def _truth(self, trajectory: Trajectory) -> bool | None:
    """Whether the oracle confirms a find; None without an oracle. For the records only."""
    if self._oracle is None:
      return None
    verdict = trajectory.verdict
    if verdict is None or not verdict.disagreement:
      return False
    answer = self._oracle(self._load(trajectory.image_id), trajectory.question)
    same = self._bank.judge.same
    return (
      answer is not None
      and same(answer, verdict.consensus)
      and not same(answer, verdict.answers[verdict.target])
    )

  # ---- 7

  def pack(self, trajectories: Sequence[Trajectory]) -> tuple[batch_lib.LearnerBatch, np.ndarray]:
    """The learner's batch, and advantages f32[P,G]. Rows and images have static counts."""
    group = self._grpo.group_size
    advantages = grpo_lib.advantages(
      np.array([t.reward for t in trajectories]).reshape(-1, group),
      std=self._grpo.std,
      eps=self._grpo.std_eps,
      weights=np.array([t.weight for t in trajectories]).reshape(-1, group),
    )
    turns, row_advantages = [], []
    for trajectory, advantage in zip(trajectories, advantages.reshape(-1)):
      if not trajectory.invalid:
        turns += trajectory.turns
        row_advantages += [advantage] * len(trajectory.turns)
    two = sum(t.strategy in prompts_lib.TWO_TURNS for t in trajectories)
    rows = -(-(len(trajectories) + two) // self._row_multiple) * self._row_multiple
    images = list(dict.fromkeys(turn.image_id for turn in turns))
    place = {image_id: i for i, image_id in enumerate(images)}
    capacity = len(trajectories) // group + two
    spare = trajectories[0].source_image_id
    batch = batch_lib.pack(
      turns,
      row_advantages,
      features=self._features(images + [spare] * (capacity - len(images))),
      image=[place[turn.image_id] for turn in turns],
      rows=rows,
      prompt_width=max(self._widths),
      completion_width=max(
        self.config.max_new_tokens[k]
        for k in {prompts_lib.FIRST_TURN[s] for s in self.config.counts()}
        | ({"question"} if two else set())
      ),
    )
    return batch, advantages
