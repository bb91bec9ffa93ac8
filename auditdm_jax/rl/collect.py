# SPDX-License-Identifier: Apache-2.0
"""From prompts to rewarded trajectories, in the order of the algorithm:

  1. `prompts`      (image, strategy) pairs of a step: a pure function of (seed, step).
  2. `_sample`      each image encoded once, each prompt prefilled once, G completions each.
  3. `parse_reply`  fields, or why not: a malformed reply is the auditor's fault and earns 0.
  4. `_make_images` captions and instructions go to the image service as soon as they are read; a
                    fault of the service makes a sample invalid (NaN), nobody's fault.
     `_ask_again`   two-turn strategies ask Q* about the new image.
  5. `_answer`      target and references answer every probe.
  6. `_reward`      the binary signal and whatever terms the config names.
  7. `collect`      group advantages, packed rows, one record per completion.

What a trajectory is asked about, answered and earns never depends on the batch it was in: every
draw is fold_in(seed, stream, prompt id, sample, turn, t).
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any, Protocol

import jax
import numpy as np

from auditdm_jax.audit.answer import FeatureCache, ModelBank
from auditdm_jax.audit.probe import Probe
from auditdm_jax.core.config import UserError
from auditdm_jax.core.metrics import Timer
from auditdm_jax.models import decode
from auditdm_jax.rl import batch as batch_lib
from auditdm_jax.rl import grpo as grpo_lib
from auditdm_jax.rl import reward as reward_lib
from auditdm_jax.rl.batch import LearnerBatch, Trajectory, Turn
from auditdm_jax.text import prompts as prompts_lib
from auditdm_jax.vlm import Vlm


class ImagePool(Protocol):
  """Images with their data set's own questions (core.pool)."""

  def __len__(self) -> int: ...
  def image_id(self, i: int) -> str: ...
  def questions(self, i: int) -> Sequence[str]: ...


class ImageStore(Protocol):
  """image_id -> u8[H,W,3]; `put` stores a new image and returns its id."""

  def __call__(self, image_id: str) -> np.ndarray: ...
  def put(self, image: np.ndarray) -> str: ...


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
  """What is sampled in a step.

  Attributes:
    prompts: strategy -> prompts per step (static shapes need a fixed mix).
    task: what the auditor is asked, by the keys of text.prompts.AUDITOR_PROMPTS; {} = those.
    max_new_tokens: longest reply by kind: question, caption, instruction.
    width: of generated images.
    height: of generated images.
    max_invalid: share of invalid samples in a step above which the run stops.
  """

  prompts: dict[str, int]
  max_new_tokens: dict[str, int]
  task: dict[str, str] = dataclasses.field(default_factory=dict)
  width: int = 1024
  height: int = 1024
  max_invalid: float = 0.2

  def __post_init__(self):
    for strategy in self.prompts:
      if strategy not in prompts_lib.FIRST_TURN:
        known = ", ".join(prompts_lib.FIRST_TURN)
        raise UserError(f"config.rollout.prompts: unknown strategy {strategy!r}; known: {known}")
    missing = {"question", *map(_kind, self.prompts)} - set(self.max_new_tokens)
    if missing:
      raise UserError(f"config.rollout.max_new_tokens: {sorted(missing)[0]!r} is missing")

  def text(self, key: str, first: str = "") -> str:
    """The task text under a key of AUDITOR_PROMPTS."""
    return (self.task or prompts_lib.AUDITOR_PROMPTS)[key].replace("{first}", first)


@dataclasses.dataclass(frozen=True)
class Prompt:
  """One (image, strategy) draw; `prompt_id` is unique in its stream."""

  prompt_id: int
  strategy: str
  image: int  # in the pool


class InvalidRollout(RuntimeError):
  """Too many samples of a step could not be scored."""


def _kind(strategy: str) -> str:
  return prompts_lib.FIRST_TURN[strategy]


@functools.partial(jax.jit, static_argnames=("cfg", "sc", "group"))
def _sample_rows(cfg, sc, params, features, tokens, valid, *, group, seed, ids, samples, turn):
  """Completions [P,G] whose randomness is that of (seed..., prompt id, sample, turn)."""
  key = jax.random.fold_in(jax.random.key(seed[0]), seed[1])

  def row(prompt_id, sample):
    return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, prompt_id), sample), turn)

  keys = jax.vmap(jax.vmap(row, (None, 0)))(ids, samples)
  return decode.sample(cfg, sc, params, features, tokens, valid=valid, group=group, row_keys=keys)


class Rollout:
  """Samples the auditor and asks the models; holds no state but caches."""

  def __init__(
    self,
    config: RolloutConfig,
    auditor: Vlm,
    *,
    pool: ImagePool,
    images: ImageStore,
    bank: ModelBank,
    cache: FeatureCache,
    client: Callable[[], Any],
    seed: int,
    temperature: float,
  ):
    """Args: `client` opens the image service's client on first use; the rest as named."""
    self.config, self.bank, self.pool = config, bank, pool
    self._auditor, self._images, self._cache = auditor, images, cache
    self._client, self._seed = functools.cache(client), seed
    tok = auditor.tokenizer
    self.banned = tuple(sorted(tok.unsampled_ids(auditor.stop_ids)))
    self._sampling = {
      kind: decode.SampleConfig(n, temperature, auditor.stop_ids, self.banned)
      for kind, n in config.max_new_tokens.items()
    }
    self.timer = Timer()

  # ---------------------------------------------------------------- 1. prompts

  def prompts(self, step: int) -> list[Prompt]:
    """The step's prompts; images come in seeded passes through the pool."""
    mix = [s for s, n in self.config.prompts.items() for _ in range(n)]
    return self.make_prompts(mix, first=step * len(mix))

  def make_prompts(self, mix: Sequence[str], *, first: int) -> list[Prompt]:
    """Prompts number `first`, first + 1, … of the endless walk through the pool."""
    out = []
    for prompt_id, strategy in enumerate(mix, first):
      epoch, place = divmod(prompt_id, len(self.pool))
      out.append(Prompt(prompt_id, strategy, int(self._order(epoch)[place])))
    return out

  @functools.lru_cache(maxsize=4)  # noqa: B019  (a rollout lives as long as its run)
  def _order(self, epoch: int) -> np.ndarray:
    return np.random.default_rng((self._seed, 61, epoch)).permutation(len(self.pool))

  # ------------------------------------------------------- 2.-4. trajectories

  def trajectories(
    self, params: Any, prompts: Sequence[Prompt], *, group: int, stream: int
  ) -> list[Trajectory]:
    """Unanswered trajectories of `prompts`, `group` per prompt, prompt-major.

    Args:
      params: the auditor's.
      prompts: what to ask about what.
      group: G.
      stream: separates the randomness of calls that share prompt ids (a step, an arm's batch).
    """
    out: dict[tuple[int, int], Trajectory] = {}
    for kind in dict.fromkeys(_kind(p.strategy) for p in prompts):
      chosen = [p for p in prompts if _kind(p.strategy) == kind]
      with self.timer("sample"):
        turns = self._first_turns(params, kind, chosen, group=group, stream=stream)
      for (prompt, g), turn in turns.items():
        out[prompt.prompt_id, g] = self._read(prompt, g, turn, stream)
    ordered = [out[p.prompt_id, g] for p in prompts for g in range(group)]
    with self.timer("images"):
      ordered = self._make_images(ordered)
    with self.timer("sample"):
      return self._ask_again(params, ordered, stream=stream)

  def _first_turns(self, params, kind, prompts, *, group, stream):
    ids = [self.pool.image_id(p.image) for p in prompts]
    texts = [self.config.text(kind)] * len(prompts)
    samples = np.tile(np.arange(group, dtype=np.int32), (len(prompts), 1))
    rows = self._sample(
      params, kind, ids, texts, stream=stream, turn=0,
      prompt_ids=[p.prompt_id for p in prompts], samples=samples,
    )  # fmt: skip
    return {(p, g): rows[i][g] for i, p in enumerate(prompts) for g in range(group)}

  def _sample(self, params, kind, image_ids, texts, *, stream, turn, prompt_ids, samples):
    """Turns [P][G] of `kind` about images; one prefill per prompt."""
    vlm, sc = self._auditor, self._sampling[kind]
    encoded = [
      prompts_lib.render(vlm.tokenizer, vlm.template, t, vlm.cfg.num_image_tokens) for t in texts
    ]
    width = max(map(len, encoded))
    tokens, valid = np.zeros((len(texts), width), np.int32), np.zeros((len(texts), width), bool)
    for i, row in enumerate(encoded):
      tokens[i, : len(row)], valid[i, : len(row)] = row, True
    features = self._cache.features(vlm, image_ids, self._images)
    drawn = jax.device_get(
      _sample_rows(
        vlm.cfg, sc, params, features, tokens, valid, group=samples.shape[1],
        seed=np.array([self._seed, stream], np.uint32), ids=np.array(prompt_ids, np.int32),
        samples=samples, turn=turn,
      )
    )  # fmt: skip
    return [
      [self._turn(kind, image_ids[i], encoded[i], drawn, (i, g)) for g in range(samples.shape[1])]
      for i in range(len(texts))
    ]

  def _turn(self, kind, image_id, prompt, drawn, at) -> Turn:
    length = int(drawn.length[at])
    tokens = drawn.tokens[at]
    return Turn(
      kind=kind, image_id=image_id, prompt=tuple(prompt),
      text=self._auditor.tokenizer.decode(tokens[:length]).strip(),
      tokens=tokens, logprobs=drawn.logprobs[at], length=length,
      truncated=bool(drawn.truncated[at]),
    )  # fmt: skip

  def _read(self, prompt: Prompt, g: int, turn: Turn, stream: int) -> Trajectory:
    """A trajectory after its first turn: parsed, or malformed."""
    source = self.pool.image_id(prompt.image)
    trajectory = Trajectory(
      prompt_id=prompt.prompt_id, sample=g, strategy=prompt.strategy, source_image_id=source,
      turns=(turn,),
      image_seed=int(np.random.SeedSequence((self._seed, stream, prompt.prompt_id, g)).generate_state(1)[0] >> 1),
    )  # fmt: skip
    reply = _parse(prompt.strategy, turn, second=False)
    if isinstance(reply, prompts_lib.Malformed):
      return dataclasses.replace(trajectory, malformed=reply.reason)
    trajectory = dataclasses.replace(trajectory, fields={turn.kind: reply.text})
    if turn.kind == "question":
      return dataclasses.replace(trajectory, question=reply.text, image_id=source)
    own = list(self.pool.questions(prompt.image))
    if prompt.strategy in prompts_lib.TWO_TURNS or not own:
      return trajectory
    # "*-only": the data set's own question of the source image, one per sample.
    return dataclasses.replace(trajectory, question=own[g % len(own)])

  def _make_images(self, trajectories: list[Trajectory]) -> list[Trajectory]:
    """Sends every caption and instruction, then waits for all of them."""
    pending = {}
    for i, t in enumerate(trajectories):
      if not t.malformed and "caption" in t.fields:
        c = self.config
        pending[i] = self._client().generate(
          t.fields["caption"], seed=t.image_seed, width=c.width, height=c.height
        )
      elif not t.malformed and "instruction" in t.fields:
        source = self._images(t.source_image_id)
        pending[i] = self._client().edit(source, t.fields["instruction"], seed=t.image_seed)
    out = list(trajectories)
    for i, future in pending.items():
      out[i] = self._with_image(out[i], future.result())
    return out

  def _with_image(self, t: Trajectory, result: Any) -> Trajectory:
    if result.image is not None:
      return dataclasses.replace(t, image_id=self._images.put(np.asarray(result.image)))
    reason = f"{result.failure.reason}: {result.failure.message}"[:200]
    if result.failure.fault == "auditor":
      return dataclasses.replace(t, malformed=reason, question="")
    return dataclasses.replace(t, invalid=reason, question="")

  def _ask_again(self, params, trajectories, *, stream) -> list[Trajectory]:
    """Second turns of the two-turn strategies, in rows of a static shape."""
    open_rows = [i for i, t in enumerate(trajectories) if t.strategy in prompts_lib.TWO_TURNS]
    ready = [i for i in open_rows if trajectories[i].image_id]
    if not ready:
      return trajectories
    # Rows without an image repeat a row that has one, so that the program's shape never changes.
    rows = ready + [ready[0]] * (len(open_rows) - len(ready))
    texts = [
      self.config.text(f"question-after-{_kind(t.strategy)}", t.fields[_kind(t.strategy)])
      for t in (trajectories[i] for i in rows)
    ]
    samples = np.array([[trajectories[i].sample] for i in rows], np.int32)
    turns = self._sample(
      params, "question", [trajectories[i].image_id for i in rows], texts, stream=stream, turn=1,
      prompt_ids=[trajectories[i].prompt_id for i in rows], samples=samples,
    )  # fmt: skip
    out = list(trajectories)
    for i, (turn,) in zip(ready, turns):
      t = dataclasses.replace(out[i], turns=(*out[i].turns, turn))
      reply = _parse(t.strategy, turn, second=True)
      if isinstance(reply, prompts_lib.Malformed):
        out[i] = dataclasses.replace(t, malformed=reply.reason)
      else:
        out[i] = dataclasses.replace(
          t, question=reply.text, fields={**t.fields, "question": reply.text}
        )
    return out

  # -------------------------------------------------------------- 5. answers

  def answer(self, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Trajectories with the verdict of every probe that came to be."""
    asked = [i for i, t in enumerate(trajectories) if t.question and not (t.malformed or t.invalid)]
    with self.timer("answer"):
      verdicts = self.bank.verdicts(
        self._images, [trajectories[i].question for i in asked],
        image_ids=[trajectories[i].image_id for i in asked],
      )  # fmt: skip
    out = list(trajectories)
    for i, verdict in zip(asked, verdicts, strict=True):
      out[i] = dataclasses.replace(out[i], verdict=verdict, answers=dict(verdict.answers))
    return out


def probe_of(t: Trajectory, *, arm: str, step: int, seed: int, source: str = "") -> Probe:
  """The probe of a trajectory with its lineage; a malformed reply is an empty question."""
  return Probe.make(
    t.image_id or t.source_image_id, t.question, strategy=t.strategy, arm=arm, source=source,
    source_image_id=t.source_image_id, instruction=t.fields.get("instruction"),
    caption=t.fields.get("caption"), seed=t.image_seed if len(t.turns) else seed, step=step,
  )  # fmt: skip


def _parse(strategy: str, turn: Turn, *, second: bool):
  if turn.truncated:
    return prompts_lib.Malformed("truncated")
  return prompts_lib.parse_reply(strategy, turn.text, second=second)


# ------------------------------------------------------- 6.-7. reward and rows


@dataclasses.dataclass(frozen=True)
class Collected:
  """A step's rows for the learner, its trajectories with rewards, and metrics."""

  batch: LearnerBatch
  trajectories: list[Trajectory]
  metrics: dict[str, float]
  finds: list[tuple[str, ...]]  # novelty keys of this step's finds


def score(
  trajectories: Sequence[Trajectory],
  config: reward_lib.RewardConfig,
  novelty: reward_lib.Novelty,
  key: Callable[[str, str], str],
) -> list[Trajectory]:
  """Trajectories with reward parts, reward (NaN = invalid) and novelty weight.

  Args:
    trajectories: answered.
    config: which terms count.
    novelty: counts of earlier steps.
    key: (question, consensus) -> what novelty counts.
  """
  out = []
  for t in trajectories:
    if t.invalid:
      out.append(t)
      continue
    find = t.verdict is not None and t.verdict.disagreement
    said = t.turns[-1]
    parts = {
      "disagreement": reward_lib.disagreement(parsed=not t.malformed, disagrees=find),
      "repetition": reward_lib.repetition(said.tokens[: said.length].tolist()),
      "length": reward_lib.length(said.length, limit=config.length_limit),
    }
    weight = novelty.weight((key(t.question, t.verdict.consensus),)) if find else 1.0
    out.append(
      dataclasses.replace(t, parts=parts, reward=reward_lib.total(config, parts), weight=weight)
    )
  return out


def collect(
  rollout: Rollout,
  params: Any,
  *,
  step: int,
  grpo: grpo_lib.GrpoConfig,
  reward: reward_lib.RewardConfig,
  novelty: reward_lib.Novelty,
  key: Callable[[str, str], str],
  row_multiple: int = 1,
) -> Collected:
  """One step's rollout, from prompts to packed rows.

  Raises:
    InvalidRollout: more than `max_invalid` of the samples could not be scored.
  """
  prompts = rollout.prompts(step)
  done = rollout.trajectories(params, prompts, group=grpo.group_size, stream=step)
  done = score(rollout.answer(done), reward, novelty, key)
  _check_valid(done, rollout.config.max_invalid, step)
  shape = (len(prompts), grpo.group_size)
  rewards = np.array([t.reward for t in done]).reshape(shape)
  weights = np.array([t.weight for t in done]).reshape(shape)
  with rollout.timer("pack"):
    advantages = grpo_lib.advantages(rewards, std=grpo.std, eps=grpo.std_eps, weights=weights)
    batch = _pack(rollout, done, advantages.reshape(-1), row_multiple)
  shares = {
    k: total / max(count, 1) for k, (total, count) in grpo_lib.group_shares(rewards).items()
  }
  finds = [
    (key(t.question, t.verdict.consensus),)
    for t in done if t.verdict is not None and t.verdict.disagreement
  ]  # fmt: skip
  return Collected(batch, done, shares | _metrics(done), finds)


def _check_valid(trajectories, limit, step):
  reasons = [t.invalid for t in trajectories if t.invalid]
  if len(reasons) > limit * len(trajectories):
    common = max(set(reasons), key=reasons.count)
    raise InvalidRollout(
      f"step {step}: {len(reasons)} of {len(trajectories)} samples could not be scored"
      f" (limit {limit:.0%}); most often: {common}"
    )


def _pack(rollout: Rollout, trajectories, advantages, row_multiple) -> LearnerBatch:
  """First and second turns as learner rows; the trajectory's advantage goes to both."""
  config, cache, vlm = rollout.config, rollout._cache, rollout._auditor  # noqa: SLF001
  turns = [(turn, a) for t, a in zip(trajectories, advantages, strict=True) for turn in t.turns]
  strategies = [t.strategy for t in trajectories]
  rows = len(strategies) + sum(s in prompts_lib.TWO_TURNS for s in strategies)
  rows = -(-rows // row_multiple) * row_multiple
  ids = list(dict.fromkeys(turn.image_id for turn, _ in turns))
  sources = len(set(t.prompt_id for t in trajectories))
  unique = sources + rows - len(strategies)  # static: one per prompt, one per second turn
  features = cache.features(vlm, ids + [ids[0]] * (unique - len(ids)), rollout._images)  # noqa: SLF001
  place = {image_id: i for i, image_id in enumerate(ids)}
  kinds = {"question", *(_kind(s) for s in strategies)}
  return batch_lib.pack(
    [turn for turn, _ in turns], [a for _, a in turns], features=features,
    image=[place[turn.image_id] for turn, _ in turns], rows=rows,
    prompt_width=max(len(turn.prompt) for turn, _ in turns),
    completion_width=max(config.max_new_tokens[k] for k in kinds),
  )  # fmt: skip


def _metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
  """What says how the search goes (GRPO.md 6)."""
  valid = [t for t in trajectories if not t.invalid]
  finds = [t for t in valid if t.verdict is not None and t.verdict.disagreement]
  questions = {t.question for t in valid if t.question}
  turns = [turn for t in trajectories for turn in t.turns]
  ended = [turn.length for turn in turns if not turn.truncated]
  reasons = [t.verdict.reason for t in valid if t.verdict is not None]
  n = max(len(valid), 1)
  out = {
    "find_rate": len(finds) / n,
    "malformed": sum(bool(t.malformed) for t in valid) / n,
    "invalid": 1 - len(valid) / max(len(trajectories), 1),
    "unique_questions": len(questions) / n,
    "truncated": sum(t.truncated for t in turns) / max(len(turns), 1),
    "length": float(np.mean(ended)) if ended else 0.0,
    "novelty_weight": float(np.mean([t.weight for t in finds])) if finds else 1.0,
    "tokens": float(sum(t.length for t in turns)),
  }
  for name in sorted(set(reasons)):
    out[f"verdict/{name.replace(' ', '_')}"] = reasons.count(name) / n
  for strategy in dict.fromkeys(t.strategy for t in valid):
    own = [t for t in valid if t.strategy == strategy]
    hits = sum(t.verdict is not None and t.verdict.disagreement for t in own)
    out[f"find_rate/{strategy}"] = hits / len(own)
  return out


def record(t: Trajectory, *, step: int, arm: str, seed: int) -> Mapping[str, Any]:
  """What is stored of every completion."""
  return {
    "step": step,
    "prompt_id": t.prompt_id,
    "sample": t.sample,
    "texts": [turn.text for turn in t.turns],
    "lengths": [turn.length for turn in t.turns],
    "malformed": t.malformed,
    "invalid": t.invalid,
    "reward": None if np.isnan(t.reward) else t.reward,
    "parts": t.parts,
    "weight": t.weight,
    "probe": probe_of(t, arm=arm, step=step, seed=seed).to_dict(),
    "verdict": t.verdict.to_dict() if t.verdict is not None else None,
  }
