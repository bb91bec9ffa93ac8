# SPDX-License-Identifier: Apache-2.0
"""What `plan` lists is what a run calls: one step is run, and every device call is written down.

The programs are replaced by stubs that note their shapes. All samples are well formed, all images
and questions are different, and no two towers have the same weights, so that no call is smaller
than a config allows.
"""

import collections
import concurrent.futures
import dataclasses

import jax
import numpy as np
import pytest

from auditdm_jax import vlm_programs
from auditdm_jax.audit.answer import FeatureCache, ModelBank
from auditdm_jax.audit.ask import BankConfig
from auditdm_jax.models import decode
from auditdm_jax.plan import programs, steps
from auditdm_jax.rl import sampler
from auditdm_jax.rl.draws import RolloutConfig
from auditdm_jax.rl.dynamic import DynamicConfig
from auditdm_jax.rl.grpo import GrpoConfig
from auditdm_jax.rl.sight import Sight
from auditdm_jax.rl.step import OptimConfig
from auditdm_jax.rl.surrogate import SurrogateConfig
from tests.rl import fakes, tiny

GROUP = 4
PLAIN = {"question": "ask", "caption": "describe", "instruction": "edit"}
# The second turns' prompts hold the text of the first one.
QUOTING = PLAIN | {
  "question-after-caption": "ask {first}",
  "question-after-instruction": "ask {first}",
}


class Client(fakes.Client):
  """Makes every image, and no two alike."""

  def _make(self, text, seed, shape):
    future = concurrent.futures.Future()
    image = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    future.set_result(fakes.Result(image, None))
    return future


class Spy:
  """Stands in for the programs; counts (program, *sizes)."""

  def __init__(self, monkeypatch):
    self.calls = collections.Counter()
    monkeypatch.setattr(sampler, "sample_rows", self.sample_rows)
    monkeypatch.setattr(vlm_programs, "encode_images", self.encode_images)
    monkeypatch.setattr(vlm_programs, "sample_answers", self.sample_answers)

  def sample_rows(self, config, sc, params, features, tokens, valid, key, turn, uids, samples):
    del config, params, features, valid, key
    self.calls["sample", *samples.shape, tokens.shape[1], sc.max_new_tokens] += 1
    # Four words that no other sample has.
    base = tiny.tokenizer().id("ask")
    drawn = np.zeros((*samples.shape, sc.max_new_tokens), np.int32)
    for n, unit in enumerate((np.asarray(uids)[:, None] // 9, np.asarray(uids)[:, None] % 9)):
      drawn[:, :, n] = base + unit
    drawn[:, :, 2], drawn[:, :, 3] = base + samples, base + int(turn)
    return decode.Samples(
      tokens=drawn,
      length=np.full(samples.shape, 4, np.int32),
      truncated=np.zeros(samples.shape, bool),
      logprobs=np.zeros(drawn.shape, np.float32),
    )

  def encode_images(self, vision, tower, pixels):
    del tower
    self.calls["encode", len(pixels)] += 1
    return np.zeros((len(pixels), vision.num_patches, vision.width), np.float32)

  def sample_answers(
    self, config, sc, params, features, tokens, valid, names, seed, limits, temperatures, tails
  ):
    del config, params, features, valid, seed, limits, temperatures
    self.calls[answer_shape(tokens, tails, sc)] += 1
    tokens = np.zeros((*names.shape, sc.max_new_tokens), np.int32)
    return tokens, np.ones(names.shape, np.int32), np.zeros(names.shape, np.float32)


def answer_shape(tokens, tails, sc):
  ends = () if tails is None else tails.tokens.shape[1:]
  return "answer", *tokens.shape, *ends, sc.max_new_tokens


def run_a_step(config, *, optim, bank_config):
  """The learner's batch of one step with real models behind stubs."""
  pool, auditor = fakes.Pool(n=24), tiny.auditor()
  store, cache = fakes.Store(pool), FeatureCache(2**20)
  names = ("target", "a", "b")
  models = {
    name: dataclasses.replace(tiny.auditor(seed), name=name) for seed, name in enumerate(names, 1)
  }
  bank = ModelBank(models, names[0], names[1:], config=bank_config, cache=cache)
  made = fakes.rollout(
    config.prompts,
    bank=bank,
    client=Client(),
    pool=pool,
    sight=Sight(auditor, cache, load=store),
    load=store,
    keep=store.keep,
    per_row=GROUP if optim.shared_prefix else 1,
    **{f.name: vars(config)[f.name] for f in dataclasses.fields(config) if f.name != "prompts"},
  )
  return made.step(auditor.params, 0).batch


def plan_a_step(config, *, optim, bank_config):
  """The programs that are planned for the same config, on one device."""
  model, tokenizer = tiny.config(), tiny.tokenizer()
  ask = len(sampler.Sampler(tiny.auditor(), seed=0, temperature=1.0).prompt("ask"))
  longest = len(tokenizer.encode("what color is it ?"))
  run = steps.PlannedRun(
    auditor=model,
    answering={"target": model, "a": model, "b": model},
    target="target",
    layout=programs.MeshLayout({"data": -1}),
    grpo=GrpoConfig(group_size=GROUP),
    optim=optim,
    rollout=config,
    bank=bank_config,
    answer_tokens=dict.fromkeys(("target", "a", "b"), bank_config.max_new_tokens),
    plan=steps.PlanConfig(
      task_tokens=ask - model.num_image_tokens,
      question_tokens=ask - model.num_image_tokens + longest - 1,
    ),
  )
  return steps.steps(run, 1)


def listed(planned):
  """(program, *sizes) of what is planned, as often as it is called."""
  calls = collections.Counter()
  for step in planned:
    args = step.build(jax.devices()[:1]).args
    if step.name.startswith("sample"):
      calls["sample", *args[9].shape, args[4].shape[1], args[1].max_new_tokens] += step.calls
    elif step.name.startswith("encode"):
      calls["encode", len(args[2])] += step.calls
    elif step.name.startswith("answer"):
      calls[answer_shape(args[4], args[-1], args[1])] += step.calls
  return calls


CASES = {
  "all strategies": {"prompts": fakes.MIXED},
  "with the texts of first turns": {"prompts": fakes.MIXED, "task": QUOTING},
  "questions": {"prompts": {"question": 3}},
  "two turns": {"prompts": {"edit": 2, "generate": 1}},
  "two turns and questions": {"prompts": {"question": 1, "edit": 2, "generate": 1}},
  "one strategy of two turns": {"prompts": {"generate": 3}},
  "the data's questions": {"prompts": {"edit-only": 2, "generate-only": 1}},
  "proposals": {"prompts": fakes.MIXED, "surrogate": SurrogateConfig(proposals=7)},
  "dynamic sampling": {"prompts": fakes.MIXED, "dynamic": DynamicConfig(rounds=1)},
}


def rollout_config(**fields):
  lengths = {"question": 5, "caption": 7, "instruction": 6}
  return RolloutConfig(**{"task": PLAIN, "max_new_tokens": lengths, "seed": 3} | fields)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shared", [True, False])
def test_every_call_of_a_step_is_planned_and_no_other(monkeypatch, case, shared):
  config, spy = rollout_config(**CASES[case]), Spy(monkeypatch)
  both = {"optim": OptimConfig(shared_prefix=shared), "bank_config": BankConfig(max_new_tokens=3)}
  batch = run_a_step(config, **both)
  planned = plan_a_step(config, **both)
  assert spy.calls == listed(planned)
  train = next(s for s in planned if s.name == "train")
  want = train.build(jax.devices()[:1]).args[1]
  shapes = lambda b: jax.tree.map(np.shape, b)  # noqa: E731
  assert shapes(want) == shapes(batch)


def test_a_cascade_calls_nothing_larger_than_is_planned(monkeypatch):
  config, spy = rollout_config(prompts=fakes.MIXED, full_share=0.5), Spy(monkeypatch)
  both = {"optim": OptimConfig(), "bank_config": BankConfig(max_new_tokens=3, cascade=True)}
  run_a_step(config, **both)
  planned = listed(plan_a_step(config, **both))
  for program in ("encode", "answer"):
    rows, most = (max(c[1] for c in calls if c[0] == program) for calls in (spy.calls, planned))
    assert rows <= most
  samples = lambda calls: {c: n for c, n in calls.items() if c[0] == "sample"}  # noqa: E731
  assert samples(spy.calls) == samples(planned)
