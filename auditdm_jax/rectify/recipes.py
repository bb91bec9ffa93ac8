# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning recipes as values: the PaliGemma transfers, Gemma 3's, and that of the scenes world.

Source of the transfers: big_vision, configs/proj/paligemma/transfers/*.py, `sweep_best` where it
has the resolution and `get_config` otherwise. A name without a number is of 224 pixels.

Gemma 3 has no published recipe for short answers, so its own is put together. The vision tower
stays frozen, as in Gemma 3's training (arXiv:2503.19786, section 2.1). Learning rate, epochs and
schedule are those that LLaMA-Factory fine-tunes the whole decoder of a chat model with images by
(examples/train_full/qwen2_5vl_full_sft.yaml), the batch is that of Megatron-Bridge for Gemma 3
(recipes/gemma3_vl). That the projector trains and that nothing decays is ours.
Learning rates of LoRA recipes, 2e-4 and the like, are not for training whole matrices.
"""

from collections.abc import Mapping
import dataclasses
import functools
import re
from types import MappingProxyType
from typing import Any, Literal

from auditdm_jax.core import config

EVERYTHING = ((".*", 1.0),)
NO_TOWER = (("img/(?!head/).*", None), (".*", 1.0))
NO_IMAGE_PART = (("img/.*", None), (".*", 1.0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowFormat:
  """How labelled data become rows, where they are fine-tuned on as a transfer does it.

  Attributes:
    res: side of the image, in pixels; it is squeezed to a square. 0 = the model's own.
    antialias: whether the image is antialiased when it is made smaller.
    text_len: most tokens that follow the image in a row: <bos>, prompt, separator and label. The
      <eos> is predicted and not fed. 0 = no limit of its own.
    prompt: of {question}, and {options} where there are some.
    between: what is between two options.
    answers: which of several answers is the label: there is "one" alone; each pass takes the next
      of a shuffled "cycle"; each pass takes "any" of them.
  """

  res: int = 0
  antialias: bool = True
  text_len: int = 0
  prompt: str = "{question}"
  between: str = ", "
  answers: Literal["one", "cycle", "any"] = "one"

  def __post_init__(self):
    config.check(vars(self), "format", "res", "text_len", least=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(config.Named):
  """How a model is fine-tuned: a name, or a section; with `name`, only what differs from that one.

  Attributes:
    name: of a recipe that is known; "" = one's own.
    epochs: passes over the new examples; used when `steps` is 0.
    steps: number of updates, or 0.
    batch_size: examples per update, new and replay together.
    lr: peak learning rate.
    wd: weight decay as big_vision counts it: not multiplied by the learning rate, and only on
      parameters named `kernel`. AdamW's weight decay of the same strength is wd / lr.
    label_smoothing: share of a target's mass that the other V - 1 tokens get.
    llm_dropout: dropout rate in the language model's blocks.
    parts: (regex, multiplier of the learning rate or None) for paths of parameters; the first regex
      that matches the whole path counts, and None keeps the parameter as it is. The vision tower is
      `img/(?!head/).*`, the projector `img/head/.*`, the language model `llm/.*`.
    replay: share of each batch from the model's old mix, so that it does not forget.
    warmup: share of the steps in which the learning rate rises from 0; cosine to 0 follows.
    clip: largest global norm of the gradients of trained parameters.
    micro_rows: examples per micro-batch, 0 = all at once. The result is the same but for dropout's
      draws; it saves memory, and on a CPU time.
    remat: compute each layer again in the backward pass instead of keeping what is in it.
    format: of labelled data.
  """

  name: str = ""
  epochs: float = 0.0
  steps: int = 0
  batch_size: int
  lr: float
  wd: float = 0.0
  label_smoothing: float = 0.0
  llm_dropout: float = 0.0
  parts: tuple[tuple[str, float | None], ...] = EVERYTHING
  replay: float = 0.0
  warmup: float = 0.05
  clip: float = 1.0
  micro_rows: int = 0
  remat: bool = False
  format: RowFormat = RowFormat()

  def __post_init__(self):
    mine = vars(self)
    config.check(mine, "recipe", "batch_size", least=1)
    config.check(mine, "recipe", "lr", "clip", above=0)
    config.check(mine, "recipe", "epochs", "steps", "wd", "micro_rows", least=0)
    config.check(mine, "recipe", "label_smoothing", "llm_dropout", "replay", least=0, below=1)
    config.check(mine, "recipe", "warmup", least=0, most=1)
    if self.micro_rows and self.batch_size % self.micro_rows:
      raise ValueError(f"batch_size {self.batch_size} % micro_rows {self.micro_rows} is not 0")
    if not self.steps and not self.epochs:
      raise ValueError("give epochs or steps")
    self._check_parts()

  def _check_parts(self) -> None:
    for regex, rate in self.parts:
      try:
        re.compile(regex)
      except re.error as e:
        raise ValueError(f"parts: {regex!r} is not a regular expression: {e}") from e
      config.check({regex: 1.0 if rate is None else rate}, "recipe.parts", above=0)
    if all(rate is None for _, rate in self.parts):
      raise ValueError("parts: nothing is trained")

  @classmethod
  def by_name(cls, name: str, *, where: str) -> "Recipe":
    return get(name, where=where)

  @property
  def new_per_batch(self) -> int:
    """New examples in a batch; at least one."""
    return max(1, self.batch_size - round(self.replay * self.batch_size))

  def num_steps(self, num_examples: int) -> int:
    """Updates for `num_examples` new examples; a partial batch is filled from the next pass."""
    return self.steps or max(1, round(self.epochs * (num_examples / self.new_per_batch)))

  def rate_of(self, path: str) -> float | None:
    """Returns the multiplier of a parameter's learning rate; None if the parameter is not trained.

    Raises:
      UserError: no part has the parameter.
    """
    for regex, rate in self.parts:
      if re.fullmatch(regex, path):
        return rate
    known = ", ".join(repr(regex) for regex, _ in self.parts)
    raise config.UserError(
      f"recipe.parts has no regex for the whole of {path!r}, only {known};"
      " end with ('.*', 1.0) or ('.*', None)"
    )


_ANSWER = RowFormat(res=224, text_len=32, prompt="answer en {question}")
_BARE = RowFormat(res=224, text_len=32)
_VQA = functools.partial(Recipe, epochs=10, batch_size=256, lr=1e-5)


def _sizes(first: Recipe, changes: Mapping[int, Mapping[str, Any]]) -> list[Recipe]:
  """Returns a transfer at its first resolution, and with what changes at others."""
  return [first] + [
    dataclasses.replace(
      first,
      name=f"{first.name}-{res}",
      format=dataclasses.replace(first.format, res=res),
      **changed,
    )
    for res, changed in changes.items()
  ]


_OF_TRANSFERS = [
  *_sizes(
    _VQA(name="vqav2", wd=1e-6, format=dataclasses.replace(_ANSWER, answers="cycle")),
    {448: {"wd": 0.0}},
  ),
  *_sizes(
    _VQA(name="gqa", epochs=1, format=dataclasses.replace(_ANSWER, antialias=False)),
    {448: {"parts": NO_IMAGE_PART}},
  ),
  *_sizes(
    _VQA(
      name="okvqa", batch_size=128, lr=5e-6, format=dataclasses.replace(_ANSWER, answers="cycle")
    ),
    {448: {}},
  ),
  *_sizes(
    _VQA(
      name="ai2d",
      wd=1e-6,
      format=RowFormat(
        res=224,
        text_len=128,
        prompt="answer en  {question} choose from: {options}",
        between=" \t ",
      ),
    ),
    {448: {}},
  ),
  *_sizes(
    _VQA(name="docvqa", wd=1e-6, format=dataclasses.replace(_BARE, answers="any")),
    {448: {}, 896: {}},
  ),
  *_sizes(
    _VQA(
      name="chartqa",
      epochs=30,
      wd=1e-6,
      label_smoothing=0.2,
      llm_dropout=0.1,
      format=dataclasses.replace(_BARE, text_len=48),
    ),
    {448: {}, 896: {}},
  ),
  *_sizes(
    _VQA(
      name="refcoco",
      epochs=100,
      lr=3e-5,
      label_smoothing=0.3,
      llm_dropout=0.1,
      # A pass of big_vision takes an image, one of its objects and one of the object's sentences.
      format=RowFormat(res=224, antialias=False, text_len=48),
    ),
    {
      448: {"lr": 1e-5, "llm_dropout": 0.0},
      896: {"lr": 1e-5, "llm_dropout": 0.0, "batch_size": 64},
    },
  ),
  *_sizes(
    _VQA(
      name="cococap",
      epochs=5,
      wd=1e-6,
      format=RowFormat(res=224, antialias=False, text_len=32, prompt="caption en", answers="cycle"),
    ),
    {448: {}},
  ),
  *_sizes(
    Recipe(
      name="forkme",
      epochs=15,
      batch_size=32,
      lr=1e-5,
      wd=3e-7,
      format=RowFormat(res=224, text_len=128),
    ),
    {448: {}, 896: {}},
  ),
]

_OF_GEMMA3 = [
  Recipe(
    name=f"gemma3-{size}",
    epochs=3,
    batch_size=32,
    lr=1e-5,
    warmup=0.1,
    parts=NO_TOWER,
    remat=True,
  )
  for size in ("4b", "12b")
]

# The worlds' small models, which share a tower. Smoothed labels and questions that are like the
# examples among what is replayed (`rectify.alike`) keep what they forgot at this rate without.
_OF_SCENES = [
  Recipe(
    name="scenes",
    steps=1000,
    batch_size=48,
    lr=2e-3,
    label_smoothing=0.05,
    replay=0.45,
    parts=NO_TOWER,
  ),
]

TRANSFERS = MappingProxyType({recipe.name: recipe for recipe in _OF_TRANSFERS})
GEMMA3 = MappingProxyType({recipe.name: recipe for recipe in _OF_GEMMA3})
SCENES = MappingProxyType({recipe.name: recipe for recipe in _OF_SCENES})


def get(name: str, *, where: str = "recipe") -> Recipe:
  """Returns a recipe by name.

  Raises:
    UserError: there is none of that name; the error says `where` it stands.
  """
  known = {**TRANSFERS, **GEMMA3, **SCENES}
  if name not in known:
    raise config.UserError(
      f"{where}: no recipe {name!r}{config.did_you_mean(name, known)}; recipes: {', '.join(known)}"
    )
  return known[name]
