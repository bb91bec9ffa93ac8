# SPDX-License-Identifier: Apache-2.0
"""A small GRPO run behind the command line, to be started in one process or in several.

  python -m tests.distributed.job --config=tests/distributed/job.py --workdir=DIR \\
    [--config.steps=N] [--config.fault=KIND,PROCESS,STEP]

Faults, in the middle of a step, before its update:
  kill     signal 9
  killed   signal 9, but after the update, with the records not yet written
  stop     SIGTERM, as schedulers send it
  freeze   SIGSTOP: alive, and silent
  raise    an error that only this process has
"""

import os
import signal
import sys

from ml_collections import ConfigDict

SIGNALS = {
  "kill": signal.SIGKILL,
  "killed": signal.SIGKILL,
  "stop": signal.SIGTERM,
  "freeze": signal.SIGSTOP,
}


def get_config():
  return ConfigDict({"steps": 4, "prompts": "question=3,edit=2,generate=1", "fault": ",-1,-1"})


def main(config, workdir):
  # Only now: jax must not be used before it is set up.
  from auditdm_jax.core.image_store import Images
  from auditdm_jax.rl import reward, trainer
  from auditdm_jax.rl.surrogate import SurrogateConfig
  from tests.rl import fakes, tiny

  learner, pool = fakes.learner(config.steps), fakes.Pool()
  made, known = Images(workdir / "images"), {pool.image_id(i): pool.image(i) for i in range(6)}
  client = fakes.Client(broken=10)
  rollout = fakes.rollout(
    {name: int(n) for name, n in (part.split("=") for part in config.prompts.split(","))},
    pool=pool,
    client=client,
    reward_config=reward.RewardConfig(novelty="ema"),
    padded=learner.padded,
    mesh=learner.mesh if learner.mesh.size > 1 else None,
    keep=made.put,
    load=lambda image_id: known[image_id] if image_id in known else made.get(image_id),
    surrogate=SurrogateConfig(proposals=6, random=1, least=8, batch=8, fits=2, width=8, heads=2),
    oracle=lambda image, question: "red" if image.sum() % 2 else "blue",
  )
  learner.update = faulty(learner, config.fault)
  saving = trainer.TrainConfig(checkpoint_every=2, harvest=(1,))
  trainer.train(saving, rollout, learner, auditor=tiny.auditor(), workdir=workdir)
  print(f"asked for {len(client.requests)} images", flush=True)
  return 0


def faulty(learner, fault):
  import jax

  kind, process, at = fault.split(",")
  update = learner.update

  def updated(batch):
    due = int(learner.state.step) == int(at) and jax.process_index() == int(process)
    if due and kind == "raise":
      raise RuntimeError("the disk is full")
    if due and kind != "killed":
      os.kill(os.getpid(), SIGNALS[kind])
    metrics = update(batch)
    if due and kind == "killed":
      os.kill(os.getpid(), SIGNALS[kind])
    return metrics

  return updated


if __name__ == "__main__":
  from auditdm_jax import __main__ as main_lib

  sys.modules["auditdm_jax.stages.job"] = sys.modules["__main__"]
  main_lib.list_stages = lambda: {"job": "A small run."}
  main_lib.main(["job", *sys.argv[1:]])
