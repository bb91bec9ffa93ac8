# SPDX-License-Identifier: Apache-2.0
"""A world around the tiny auditor: pool, ensemble and image service that answer by hash."""

import collections
import concurrent.futures
import dataclasses
import enum
import types
import zlib

import numpy as np

from auditdm_jax.audit.ask import BankConfig
from auditdm_jax.audit.judge import Judge
from auditdm_jax.audit.probe import probe_id
from auditdm_jax.audit.verdict import ConsensusRule, verdict
from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.core.image_store import Images
from auditdm_jax.rl import (
  drawing,
  draws,
  gauges,
  grpo,
  packing,
  probing,
  reward,
  scoring,
  shapes,
)
from auditdm_jax.rl import learner as learner_lib
from auditdm_jax.rl import rollout as rollout_lib
from auditdm_jax.rl import sampler as sampler_lib
from tests.rl import tiny

WORDS = ("red", "blue", "unanswerable")


def pick(*key):
  return zlib.crc32(repr(key).encode())


class Pool:
  def __init__(self, n=6, questions=("what color is it ?", "is it red ?")):
    self._images = [np.full((16, 16, 3), 10 * i, np.uint8) for i in range(n)]
    self._questions = questions

  def __len__(self):
    return len(self._images)

  def image(self, i):
    return self._images[i]

  def image_id(self, i):
    return Images.id_of(self._images[i])

  def questions(self, i):
    return self._questions


class Bank:
  """Two references that often agree and a target that often does not."""

  target, references = "t", ("a", "b")
  config = BankConfig()

  def __init__(self):
    self.judge = Judge()
    self.asked = []
    self.vlms, self.computed = {}, collections.Counter()
    self.cache = types.SimpleNamespace(encoded=collections.Counter())

  def verdicts(self, load, questions, *, image_ids, cascade=None):
    self.asked += list(zip(image_ids, questions))
    return [self._verdict(i, q) for i, q in zip(image_ids, questions)]

  def _verdict(self, image_id, question):
    a = WORDS[pick("a", image_id, question) % 3]
    b = a if pick("b", image_id, question) % 4 else "green"
    t = WORDS[pick("t", image_id, question) % 2]
    return verdict(
      probe_id(image_id, question),
      {"t": t, "a": a, "b": b},
      self.judge,
      target="t",
      references=self.references,
      rule=ConsensusRule(abstentions=("unanswerable",)),
    )


class Reason(enum.Enum):
  INVALID_INSTRUCTION = "cannot be carried out"
  DEADLINE = "not done in time"


@dataclasses.dataclass(frozen=True)
class Failure:
  reason: Reason
  message: str
  fault: str


@dataclasses.dataclass(frozen=True)
class Result:
  image: np.ndarray | None
  failure: Failure | None
  fit: str = ""


class Client:
  """Every fourth text is nonsense to it; `broken` of a hundred requests fail on their own."""

  def __init__(self, broken=0):
    self.broken = broken
    self.requests = []

  def edit(self, image, instruction, *, seed):
    return self._make(instruction, seed, image.shape)

  def generate(self, prompt, *, seed, width, height):
    return self._make(prompt, seed, (height, width, 3))

  def _make(self, text, seed, shape):
    self.requests.append((text, seed))
    future = concurrent.futures.Future()
    if pick("service", seed) % 100 < self.broken:
      failure = Failure(Reason.DEADLINE, "late", "service")
    elif pick("nonsense", text) % 4 == 0:
      failure = Failure(Reason.INVALID_INSTRUCTION, "no such thing", "auditor")
    else:
      failure = None
    image = None if failure else np.full(shape, seed % 251, np.uint8)
    fit = "" if failure else f"{shape[1]}x{shape[0]}>64x64 pad"
    future.set_result(Result(image, failure, fit))
    return future


class Store:
  """Made images and those of the pool, by id."""

  def __init__(self, pool):
    self._images = {pool.image_id(i): pool.image(i) for i in range(len(pool))}

  def keep(self, image):
    image_id = Images.id_of(image)
    self._images[image_id] = image
    return image_id

  def __call__(self, image_id):
    return self._images[image_id]


def features(image_ids):
  draw = lambda i: np.random.default_rng(pick(i)).normal(size=(4, 8))  # noqa: E731
  return np.stack([draw(i) for i in image_ids]).astype(np.float32)


MIXED = {"question": 2, "edit": 1, "generate": 1, "edit_only": 1, "generate_only": 1}


class Sight:
  """Features by hash; pixels where the tower trains."""

  reader = None

  def __init__(self, features=None, pixels=None):
    self._features, self._pixels = features, pixels
    self.trains = pixels is not None

  def features(self, params, image_ids):
    return self._features(params, image_ids) if self._features else features(image_ids)

  def before(self, image_ids):
    return self.features(None, image_ids)

  def pixels(self, image_ids):
    return self._pixels(image_ids)


def prober(config, *, group_size=4, pool=None, client=None, keep=None, sight=None, **options):
  """A Prober with its sampler; options are those of the Prober, and `mesh`."""
  sampler = sampler_lib.Sampler(
    tiny.auditor(), seed=config.seed, temperature=1.0, mesh=options.pop("mesh", None)
  )
  pool = pool or Pool()
  return probing.Prober(
    config,
    shapes.calls_of(config, group_size, length=sampler.length),
    pool=pool,
    sampler=sampler,
    sight=sight or Sight(),
    drawing=drawing.Drawing(
      client or Client(), keep=keep or Store(pool).keep, deadline_s=config.deadline_s
    ),
    **options,
  )


def rollout(
  prompts=None,
  *,
  group_size=4,
  client=None,
  pool=None,
  bank=None,
  grpo_config=None,
  reward_config=None,
  load=None,
  keep=None,
  sight=None,
  key_of=lambda question, answer: (answer,),
  paraphrase=None,
  oracle=None,
  well_formed=None,
  mesh=None,
  per_row=None,
  padded=lambda rows: rows,
  before=None,
  **fields,
):
  """A Rollout; fields are those of its config."""
  pool, bank = pool or Pool(), bank or Bank()
  store = Store(pool)
  load, keep = load or store, keep or store.keep
  defaults = {
    "task": {"question": "ask", "caption": "describe", "instruction": "edit"},
    "max_new_tokens": {"question": 5, "caption": 7, "instruction": 6},
    "seed": 3,
    "max_invalid": 0.9,
  }
  config = draws.RolloutConfig(**{**defaults, "prompts": prompts or MIXED, **fields})
  grpo_config = grpo_config or grpo.GrpoConfig(group_size=group_size)
  size = grpo_config.group_size
  made = prober(
    config,
    group_size=size,
    pool=pool,
    client=client,
    keep=keep,
    sight=sight,
    well_formed=well_formed,
    mesh=mesh,
  )
  calls = shapes.calls_of(
    config, size, length=made.sampler.length, per_row=per_row or size, padded=padded
  )
  return rollout_lib.Rollout(
    grpo_config,
    run="train",
    prober=made,
    scorer=scoring.Scorer(
      config,
      reward_config or reward.RewardConfig(),
      bank=bank,
      load=load,
      key_of=key_of,
      paraphrase=paraphrase,
      oracle=oracle,
    ),
    packer=packing.Packer(calls, made.sight),
    gauges=gauges.Gauges(config.gauges, bank, seed=config.seed, load=load),
    before=before,
  )


def learner(steps=4, *, grpo_config=None):
  vlm = tiny.auditor()
  return learner_lib.Learner(
    vlm.config,
    grpo_config or grpo.GrpoConfig(group_size=4, kl_coef=0.02),
    optim=learner_lib.OptimConfig(steps=steps, lr=1e-2),
    mesh=mesh_lib.make_mesh({"data": -1}),
    rules=[(".*", ())],
    params=vlm.params,
    banned=vlm.tokenizer.unsampled_ids(vlm.stop_ids),
  )
