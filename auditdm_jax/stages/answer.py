# SPDX-License-Identifier: Apache-2.0
"""answer: asks a model of any origin about images, or about nothing but text.

  python -m auditdm_jax answer --model=DIR --image=cat.jpg --prompt="what is on the mat?"

Several images and one prompt, one image and several prompts, or as many of both: each prompt is
asked about its image. One answer is printed as it is, several as lines of JSON.

Reads:  the model's folder and the images.
Writes: nothing.
Costs:  loading the model, then one answer a prompt.
"""

from collections.abc import Sequence
import json
import pathlib

from absl import flags

from auditdm_jax.core.config import UserError
from auditdm_jax.vlm import load_vlm

FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_string(
  "model",
  None,
  "The model: a folder, or an npz file of big_vision.",
  required=True,
  flag_values=FLAGS,
)
_IMAGE = flags.DEFINE_multi_string("image", [], "An image file.", flag_values=FLAGS)
_PROMPT = flags.DEFINE_multi_string(
  "prompt", None, "What to ask, without a template.", required=True, flag_values=FLAGS
)
_MAX_NEW_TOKENS = flags.DEFINE_integer(
  "max_new_tokens", 64, "The longest answer.", lower_bound=1, flag_values=FLAGS
)
_TEMPERATURE = flags.DEFINE_float(
  "temperature", 0.0, "0 is greedy.", lower_bound=0.0, flag_values=FLAGS
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the sampling.", flag_values=FLAGS)
_DTYPE = flags.DEFINE_enum(
  "dtype", "float32", ["float32", "bfloat16"], "Of parameters and computation.", flag_values=FLAGS
)


def main() -> int:
  """Answers what the flags ask."""
  images, prompts = pair(_IMAGE.value, _PROMPT.value)
  for image in images:
    if image is not None and not pathlib.Path(image).is_file():
      raise UserError(f"--image={image}: no such file")
  vlm = load_vlm(_MODEL.value, dtype=_DTYPE.value)
  answers = vlm.answer(
    images,
    prompts,
    max_new_tokens=_MAX_NEW_TOKENS.value,
    temperature=_TEMPERATURE.value,
    seed=_SEED.value,
  )
  for image, prompt, answer in zip(images, prompts, answers):
    row = {"image": image, "prompt": prompt, "answer": answer}
    print(json.dumps(row, ensure_ascii=False) if len(answers) > 1 else answer)
  return 0


def pair(images: Sequence[str], prompts: list[str]) -> tuple[Sequence[str | None], list[str]]:
  """Returns as many images, or Nones, as prompts; a single one of either goes with all others.

  Raises:
    UserError: neither is single and their numbers differ.
  """
  if not images:
    return [None] * len(prompts), prompts
  if len(prompts) == 1:
    return [*images], prompts * len(images)
  if len(images) not in (1, len(prompts)):
    raise UserError(
      f"{len(images)} --image for {len(prompts)} --prompt: give one of either, or as many of both"
    )
  return [*images] * (len(prompts) // len(images)), prompts
