# SPDX-License-Identifier: Apache-2.0
"""Our side of test_grpo_step; a process of its own.

COMMAND
  python -m tests.perf.grpo_ours FOLDER SIZE STEPS [plain] [devices=N] [unroll=N] [head_chunk=N]
    [micro_rows=N]
prints {"seconds": [per step, …], "phases": {phase: [seconds, …]}, …}
"""

from collections.abc import Callable
import dataclasses
import functools
import json
import sys
import time

import jax
import numpy as np

from auditdm_jax import load_vlm, vlm_programs
from auditdm_jax.audit.judge import Judge
from auditdm_jax.audit.verdict import verdict
from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.models import decode, multimodal
from auditdm_jax.rl import batch as batch_lib
from auditdm_jax.rl import flops, grpo
from auditdm_jax.rl.learner import Learner
from auditdm_jax.rl.step import OptimConfig
from tests.perf import grpo_sizes

ANSWER = 8  # Tokens of an answer to a completion.


def run(
  folder: str, size: grpo_sizes.Size, steps: int, *, shared: bool, unroll: int = 1, **optim
) -> dict:
  """Steps on the prompts, lengths and trivial reward of the other side; new images in each step."""
  vlm = load_vlm(folder)
  text = dataclasses.replace(vlm.config.text, unroll=unroll)
  vlm = dataclasses.replace(vlm, config=dataclasses.replace(vlm.config, text=text))
  banned = (vlm.config.image_token_id,)
  learner = Learner(
    vlm.config,
    grpo.GrpoConfig(group_size=size.group),
    optim=OptimConfig(steps=1000, **optim),
    mesh=mesh_lib.make_mesh({"data": -1}),
    rules=[(".*", ())],
    params=vlm.params,
    banned=banned,
  )
  split = mesh_lib.batch_sharding(learner.mesh)
  encode = jax.jit(functools.partial(multimodal.encode_images, vlm.config))
  # No terminator: every completion has its full length, as on the other side.
  sampling = decode.SampleConfig(size.completion, 1.0, (), banned)
  sample = jax.jit(functools.partial(decode.sample, vlm.config, sampling, group=size.group))

  rng = np.random.default_rng(0)
  image = [vlm.config.image_token_id] * size.image_tokens
  words = rng.integers(7, size.vocab, size.text_tokens)
  prompt = np.array([4, *image, 5, *words], np.int32)
  prompts = np.tile(prompt, (size.prompts, 1))
  valid = np.ones(prompts.shape, bool)
  shape = (size.prompts, size.image, size.image, 3)
  per_row = size.group if shared else 1
  rows = size.prompts * size.group // per_row
  seconds, cpu, phases = [], [], {name: [] for name in ("vision", "sample", "learner")}
  for step in range(steps):
    begin, cpu_begin = time.perf_counter(), time.process_time()
    pixels = rng.integers(0, 256, shape, dtype=np.uint8).astype(np.float32) / 127.5 - 1.0
    features = jax.block_until_ready(encode(vlm.params, jax.device_put(pixels, split)))
    seen = time.perf_counter()
    keys = jax.random.split(jax.random.key(step), (size.prompts, size.group))
    inputs = jax.device_put((prompts, valid, keys), split)
    drawn = jax.device_get(
      sample(learner.sampling_params(), features, inputs[0], valid=inputs[1], row_keys=inputs[2])
    )
    said = time.perf_counter()
    assert drawn.truncated.all()
    rewards = np.array([[len(set(ids)) % 2 for ids in row.tolist()] for row in drawn.tokens])
    advantages = grpo.advantages(rewards.astype(float))

    def lines(x):
      return x.reshape(rows, per_row, *x.shape[2:])

    part = batch_lib.Rows(
      image=np.repeat(np.arange(size.prompts, dtype=np.int32), size.group // per_row),
      prompt=np.tile(prompt, (rows, 1)),
      prompt_valid=np.ones((rows, len(prompt)), bool),
      targets=lines(drawn.tokens),
      loss_mask=np.ones((rows, per_row, size.completion), bool),
      advantages=lines(advantages),
      logp_sampler=lines(drawn.logprobs),
    )
    batch = batch_lib.LearnerBatch(np.asarray(features), None, (part,))
    metrics = learner.update(batch)
    end = time.perf_counter()
    seconds.append(end - begin)
    cpu.append(time.process_time() - cpu_begin)
    for name, taken in zip(phases, (seen - begin, said - seen, end - said)):
      phases[name].append(taken)
  # What else a step of AuditDM takes, and the sampler's parts; after a first call that compiles.
  one = jax.jit(
    functools.partial(
      decode.sample, vlm.config, dataclasses.replace(sampling, max_new_tokens=1), group=size.group
    )
  )
  begin_sampling = functools.partial(
    one, learner.sampling_params(), features, inputs[0], valid=inputs[1], row_keys=inputs[2]
  )
  questions = np.concatenate(
    [np.repeat(prompts, size.group, axis=0), drawn.tokens.reshape(-1, size.completion)], axis=1
  )
  ask = functools.partial(
    vlm_programs.sample_answers,
    vlm.config,
    dataclasses.replace(sampling, max_new_tokens=ANSWER, temperature=0.0),
    vlm.params,
    jax.numpy.repeat(features, size.group, axis=0),
    questions,
    np.ones(questions.shape, bool),
    np.arange(len(questions))[:, None],
    np.int32(0),
    None,
    None,
    None,
  )
  said_by_all = {
    name: [" ".join(f"w{i}" for i in row) for row in rng.integers(7, 12, (len(questions), 2))]
    for name in ("target", "first", "second")
  }

  def judge_all() -> None:
    judge = Judge()  # Anew: it remembers what it has compared.
    for k in range(len(questions)):
      answers = {name: texts[k] for name, texts in said_by_all.items()}
      verdict("probe", answers, judge, target="target", references=("first", "second"))

  phases["prefill"] = timed(lambda: jax.block_until_ready(begin_sampling()), steps)
  phases["answers"] = timed(lambda: jax.block_until_ready(ask()), steps)
  phases["judge"] = timed(judge_all, steps)
  started = float(np.median(phases["prefill"]))
  phases["decode"] = [max(s - started, 0.0) for s in phases.pop("sample")]
  width = len(prompt)
  drawn_tokens = size.prompts * size.group * size.completion
  prefill = flops.decoder(
    text, tokens=size.prompts * width, context=width, predictions=size.prompts
  )
  decoding = flops.decoder(
    text, tokens=drawn_tokens, context=width + size.completion / 2, predictions=drawn_tokens
  )
  answering = flops.decoder(
    text,
    tokens=questions.size + len(questions) * ANSWER,
    context=questions.shape[1],
    predictions=len(questions) * ANSWER,
  )
  return {
    # The first step compiles.
    "seconds": seconds[1:],
    "cpu_seconds": cpu[1:],
    "compile": seconds[0],
    "phases": {name: taken[1:] for name, taken in phases.items()},
    "gflop": {
      "vision": size.prompts * flops.tower(vlm.config.vision) / 1e9,
      "prefill": prefill / 1e9,
      "decode": decoding / 1e9,
      "answers": answering / 1e9,
      "learner": flops.learning(vlm.config, batch, kl=False) / 1e9,
    },
    "tokens": {
      "vision": size.prompts * vlm.config.vision.num_patches,
      "prefill": size.prompts * width,
      "decode": drawn_tokens,
      "answers": questions.size + len(questions) * ANSWER,
      "judge": len(questions),  # verdicts
      "learner": size.prompts * width + drawn_tokens,
    },
    "matmul_gflops": matmul_gflops(),
    "gap": metrics["sampler_gap_max"],
    "parameters": sum(x.size for x in jax.tree.leaves(vlm.params)),
    "versions": f"jax {jax.__version__}",
    "device": jax.devices()[0].device_kind,
  }


def timed(function: Callable[[], object], times: int) -> list[float]:
  """Seconds of each call, the first of which compiles."""
  taken = []
  for _ in range(times):
    begin = time.perf_counter()
    function()
    taken.append(time.perf_counter() - begin)
  return taken


def matmul_gflops(n: int = 2048) -> float:
  """Speed of one large product on what the process may use."""
  multiply = jax.jit(lambda x: x @ x)
  x = jax.block_until_ready(multiply(np.ones((n, n), np.float32) / n))
  taken = []
  for _ in range(5):
    begin = time.perf_counter()
    jax.block_until_ready(multiply(x))
    taken.append(time.perf_counter() - begin)
  return 2 * n**3 / min(taken) / 1e9


if __name__ == "__main__":
  where, name, count, *options = sys.argv[1:]
  given = {key: int(value) for key, value in (o.split("=") for o in options if "=" in o)}
  jax.config.update("jax_num_cpu_devices", given.pop("devices", 1))
  if jax.default_backend() != "cpu":
    given["micro_rows"] = 0  # They are for a CPU's caches.
  shared = "plain" not in options
  done = run(where, grpo_sizes.SIZES[name], int(count), shared=shared, **given)
  print(json.dumps(done))
