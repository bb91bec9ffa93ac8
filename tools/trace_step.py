# SPDX-License-Identifier: Apache-2.0
"""Runs one GRPO step and prints what a reader of it opens: files, functions, and lines of rl/.

  python -m tools.trace_step

The step is one of a tiny run in the scenes world that asks questions only. Counted are the source
lines, docstrings included, of every function of the package that is entered between the start of
the step and its metrics; the step is compiled on the way, so that models and loss are among them.
"""

from collections import defaultdict
import inspect
import os
import pathlib
import sys
import tempfile
from types import CodeType, FrameType
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np  # noqa: E402

from auditdm_jax import scenes  # noqa: E402
from auditdm_jax.audit.answer import FeatureCache, ModelBank  # noqa: E402
from auditdm_jax.audit.ask import BankConfig  # noqa: E402
from auditdm_jax.core import mesh  # noqa: E402
from auditdm_jax.core.image_store import Images  # noqa: E402
from auditdm_jax.rl import build, trainer  # noqa: E402
from auditdm_jax.rl.draws import RolloutConfig  # noqa: E402
from auditdm_jax.rl.grpo import GrpoConfig  # noqa: E402
from auditdm_jax.rl.learner import Learner  # noqa: E402
from auditdm_jax.rl.reward import RewardConfig  # noqa: E402
from auditdm_jax.rl.scoring import Scorer  # noqa: E402
from auditdm_jax.rl.sight import Sight  # noqa: E402
from auditdm_jax.rl.step import OptimConfig  # noqa: E402
from auditdm_jax.scenes import render, world  # noqa: E402
from auditdm_jax.vlm import load_vlm  # noqa: E402

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "auditdm_jax"
WEIGHTS = ROOT / "data/scenes/weights"


class Scenes:
  """A pool of drawn scenes."""

  def __init__(self, size: int):
    rng = np.random.default_rng(0)
    self._images = [render.render(world.sample_scene(rng), i) for i in range(size)]
    self._ids = [Images.id_of(image) for image in self._images]

  def __len__(self) -> int:
    return len(self._images)

  def image(self, i: int) -> np.ndarray:
    return self._images[i]

  def image_id(self, i: int) -> str:
    return self._ids[i]

  def questions(self, i: int) -> tuple[str, ...]:
    return ()

  def load(self, image_id: str) -> np.ndarray:
    return self._images[self._ids.index(image_id)]


class Trace:
  """Notes the package's functions that are entered while one of them runs."""

  def __init__(self, outermost: CodeType):
    self._outermost, self._is_on = outermost, False
    self.entered: dict[CodeType, None] = {}

  def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
    code = frame.f_code
    if code is self._outermost and event in ("call", "return"):
      self._is_on = event == "call"
    if self._is_on and event == "call" and code.co_filename.startswith(str(PACKAGE)):
      self.entered[code] = None


def run_a_step(workdir: pathlib.Path) -> Trace:
  """Trains for one step with the shipped models; returns what the step entered."""
  auditor, cache, pool = load_vlm(WEIGHTS / "auditor"), FeatureCache(2**28), Scenes(8)
  names = ("target_easy", "ref_paligemma2", "ref_gemma3")
  models = {name: load_vlm(WEIGHTS / name) for name in names}
  bank = ModelBank(models, names[0], names[1:], config=BankConfig(max_new_tokens=3), cache=cache)
  grpo = GrpoConfig(group_size=4)
  learner = Learner(
    auditor.config,
    grpo,
    optim=OptimConfig(steps=1),
    mesh=mesh.make_mesh({"data": -1}),
    rules=((".*", ()),),
    params=auditor.params,
    banned=auditor.tokenizer.unsampled_ids(auditor.stop_ids),
  )
  config = RolloutConfig({"question": 2}, task={"question": "ask"}, max_new_tokens={"question": 11})
  sight = Sight(auditor, cache, load=pool.load)
  made = build.rollout(
    grpo,
    learner,
    run="train",
    prober=build.prober(config, grpo, auditor=auditor, pool=pool, sight=sight),
    scorer=Scorer(config, RewardConfig(), bank=bank, load=pool.load, oracle=scenes.oracle),
  )
  trace = Trace(trainer.Run.step.__code__)
  sys.setprofile(trace)
  try:
    trainer.train(trainer.TrainConfig(), made, learner, auditor=auditor, workdir=workdir)
  finally:
    sys.setprofile(None)
  return trace


def main() -> None:
  with tempfile.TemporaryDirectory() as folder:
    trace = run_a_step(pathlib.Path(folder))
  lines: dict[str, set[int]] = defaultdict(set)
  functions: dict[str, dict[str, int]] = defaultdict(dict)
  for code in trace.entered:
    file = os.path.relpath(code.co_filename, PACKAGE)
    if not os.path.isfile(code.co_filename):
      continue  # What a dataclass generates.
    source, first = inspect.getsourcelines(code)
    lines[file] |= set(range(first, first + len(source)))
    if "<locals>" not in code.co_qualname:
      functions[file][code.co_qualname] = len(source)
  rl = [file for file in sorted(lines) if file.startswith("rl/")]
  for file in rl:
    print(f"\n{file}: {len(lines[file])} lines")
    for name, count in functions[file].items():
      print(f"  {count:4} {name}")
  print("\nother files: " + ", ".join(f for f in sorted(lines) if f not in rl))
  print(
    f"\n{len(lines)} files, {sum(map(len, functions.values()))} functions,"
    f" {sum(map(len, lines.values()))} lines; rl/: {len(rl)} files,"
    f" {sum(len(functions[f]) for f in rl)} functions, {sum(len(lines[f]) for f in rl)} lines"
  )


if __name__ == "__main__":
  main()
