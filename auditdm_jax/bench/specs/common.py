# SPDX-License-Identifier: Apache-2.0
"""Prompts that several benchmarks share, each with where it is from."""

from auditdm_jax.bench.scorers.rows import Variant
from auditdm_jax.bench.specs.base import MetricName, OptionStyle, PromptSpec

BIG_VISION, LMMS_EVAL, VLMEVALKIT = Variant.BIG_VISION, Variant.LMMS_EVAL, Variant.VLMEVALKIT
OFFICIAL, OURS = Variant.OFFICIAL, Variant.OURS

WORD = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
_LETTERS = OptionStyle()
_TABS = OptionStyle(each="{text}", between=" \t ")
# Gemma 3 in VLMEvalKit: vlm/gemma.py, Gemma3.
_KIT_TOKENS = 4096
# lmms-eval's Gemma 3 where a task says nothing: models/simple/gemma3.py.
LMMS_TOKENS = 128


def transfer(
  template: str,
  metric: str,
  *,
  max_tokens: int,
  antialias: bool,
  antialias_train: bool | None = None,
  beam: int = 1,
  variant: str = BIG_VISION,
  options: OptionStyle = _TABS,
) -> PromptSpec:
  """A model that big_vision's transfer config fine-tuned; `antialias` is that of its evaluation."""
  return PromptSpec(
    template=template,
    metric=MetricName(name=metric, variant=variant),
    max_tokens=max_tokens,
    options=options,
    antialias=antialias,
    antialias_train=antialias if antialias_train is None else antialias_train,
    beam=beam,
    source="big_vision configs/proj/paligemma/transfers",
  )


def mix(template: str, metric: str, *, max_tokens: int, variant: str = BIG_VISION) -> PromptSpec:
  """A mix checkpoint, by the task syntax of ai.google.dev/gemma/docs/paligemma."""
  return PromptSpec(
    template=template,
    metric=MetricName(name=metric, variant=variant),
    max_tokens=max_tokens,
    source="ai.google.dev/gemma/docs/paligemma/prompt-system-instructions",
  )


def mix_choice(
  metric: str = "exact_match", *, variant: str = BIG_VISION, chooses: bool = False
) -> PromptSpec:
  """A mix checkpoint with options, which are given as the transfer to AI2D gives them: ours."""
  return PromptSpec(
    template="answer en {question} choose from: {options}",
    plain="answer en {question}",
    metric=MetricName(name=metric, variant=variant),
    max_tokens=128,
    options=_TABS,
    chooses=chooses,
    source="ours",
  )


def lmms_eval(
  template: str,
  metric: str,
  *,
  task: str,
  max_tokens: int = LMMS_TOKENS,
  variant: str = LMMS_EVAL,
  plain: str = "",
  options: OptionStyle = _LETTERS,
  hint: str = "",
  drop: str = "",
  strip: bool = False,
  chooses: bool = False,
) -> PromptSpec:
  """A chat model as a task of lmms-eval asks it."""
  return PromptSpec(
    template=template,
    plain=plain,
    metric=MetricName(name=metric, variant=variant),
    max_tokens=max_tokens,
    options=options,
    hint=hint,
    drop=drop,
    strip=strip,
    chooses=chooses,
    source=f"lmms-eval, task {task}",
  )


def vlmevalkit(template: str, metric: str) -> PromptSpec:
  """A chat model as VLMEvalKit asks it."""
  return PromptSpec(
    template=template,
    metric=MetricName(name=metric, variant=VLMEVALKIT),
    max_tokens=_KIT_TOKENS,
    source="VLMEvalKit vlmeval/dataset/image_base.py, image_vqa.py, image_yorn.py",
  )


def vlmevalkit_choice(metric: str) -> PromptSpec:
  """A chat model as VLMEvalKit asks it to choose; the blank before the last newline is its own."""
  return PromptSpec(
    template=(
      "{hint}Question: {question}\nOptions:\n{options}\n"
      "Please select the correct answer from the options above. \n"
    ),
    plain="{hint}Question: {question}\n",
    hint="Hint: {hint}\n",
    metric=MetricName(name=metric, variant=VLMEVALKIT),
    max_tokens=_KIT_TOKENS,
    chooses=True,
    source="VLMEvalKit vlmeval/dataset/image_mcq.py, ImageMCQDataset.build_prompt",
  )
