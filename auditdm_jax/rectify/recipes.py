# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning recipes as values: those of the PaliGemma transfers, and that of the scenes world.

Source of the transfers: big_vision, configs/proj/paligemma/transfers/*.py (`sweep_best` where
there is one).
"""

import dataclasses
from types import MappingProxyType
from typing import Literal

from auditdm_jax.core import config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
  """What a fine-tuning run needs to know besides its data.

  Attributes:
    epochs: passes over the new examples; used when `steps` is 0.
    steps: number of updates, or 0.
    batch_size: examples per update, new and replay together.
    lr: peak learning rate.
    wd: weight decay as big_vision counts it: not multiplied by the learning rate, and only on
      parameters named `kernel`. AdamW's weight decay of the same strength is wd / lr.
    label_smoothing: mass that is spread over all V tokens; big_vision leaves the right one out, a
      difference of 1/V of it.
    llm_dropout: dropout rate in the language model's blocks.
    freeze: parts that keep their weights; native fine-tuning never trains the vision tower, so that
      without "img" here it still trains the projector.
    replay: share of each batch from the model's old mix, so that it does not forget.
    warmup: share of the steps in which the learning rate rises from 0; cosine to 0 follows.
    clip: largest global norm of the gradients of unfrozen parameters.
    micro_rows: examples per micro-batch, 0 = all at once. The result is the same; it saves memory,
      and on a CPU time.
    remat: compute each layer again in the backward pass instead of keeping what is in it.
  """

  epochs: float = 0.0
  steps: int = 0
  batch_size: int
  lr: float
  wd: float = 0.0
  label_smoothing: float = 0.0
  llm_dropout: float = 0.0
  freeze: tuple[Literal["img", "llm"], ...] = ()
  replay: float = 0.0
  warmup: float = 0.05
  clip: float = 1.0
  micro_rows: int = 0
  remat: bool = False

  def __post_init__(self):
    mine = vars(self)
    config.check(mine, "recipe", "batch_size", least=1)
    config.check(mine, "recipe", "lr", "clip", above=0)
    config.check(mine, "recipe", "epochs", "steps", "wd", "micro_rows", least=0)
    config.check(mine, "recipe", "label_smoothing", "llm_dropout", least=0, below=1)
    config.check(mine, "recipe", "warmup", least=0, most=1)
    if self.micro_rows and self.batch_size % self.micro_rows:
      raise ValueError(f"batch_size {self.batch_size} % micro_rows {self.micro_rows} is not 0")
    if (self.steps > 0) == (self.epochs > 0):
      raise ValueError("give either epochs or steps")
    if not 0 <= self.replay < 1:
      raise ValueError(f"replay is a share in [0, 1), got {self.replay}")

  @property
  def new_per_batch(self) -> int:
    """New examples in a batch; at least one."""
    return max(1, self.batch_size - round(self.replay * self.batch_size))

  def num_steps(self, num_examples: int) -> int:
    """Updates for `num_examples` new examples; a partial batch is filled from the next pass."""
    return self.steps or max(1, round(self.epochs * num_examples / self.new_per_batch))


_VQA = Recipe(epochs=10, batch_size=256, lr=1e-5)

TRANSFERS = MappingProxyType(
  {
    "vqav2": dataclasses.replace(_VQA, wd=1e-6),
    "vqav2-448": _VQA,
    "gqa": dataclasses.replace(_VQA, epochs=1),
    "gqa-448": dataclasses.replace(_VQA, epochs=1, freeze=("img",)),
    "okvqa": dataclasses.replace(_VQA, batch_size=128, lr=5e-6),
    "ai2d": dataclasses.replace(_VQA, wd=1e-6),
    "docvqa": dataclasses.replace(_VQA, wd=1e-6),
    "chartqa": dataclasses.replace(_VQA, epochs=30, wd=1e-6, label_smoothing=0.2, llm_dropout=0.1),
    "refcoco": dataclasses.replace(_VQA, epochs=100, lr=3e-5, label_smoothing=0.3, llm_dropout=0.1),
    "refcoco-448": dataclasses.replace(_VQA, epochs=100, label_smoothing=0.3),
    "cococap": dataclasses.replace(_VQA, epochs=5, wd=1e-6),
    "forkme": Recipe(epochs=15, batch_size=32, lr=1e-5, wd=3e-7),
  }
)

SCENES = MappingProxyType(
  {
    "scenes-quick": Recipe(steps=450, batch_size=64, lr=2.5e-3, replay=0.5),
    "scenes": Recipe(steps=1200, batch_size=64, lr=1.5e-3, replay=0.5),
  }
)


def get(name: str) -> Recipe:
  """Returns a recipe by name."""
  known = {**TRANSFERS, **SCENES}
  if name not in known:
    raise config.UserError(
      f"no recipe {name!r}{config.did_you_mean(name, known)}; recipes: {', '.join(known)}"
    )
  return known[name]
