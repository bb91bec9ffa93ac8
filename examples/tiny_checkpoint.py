# SPDX-License-Identifier: Apache-2.0
"""A tiny Gemma 3 with random weights, in a folder as Hugging Face's; nothing is downloaded.

COMMAND
  python -m examples.tiny_checkpoint --output=models/tiny

Shapes, tokenizer and image processor are those of a shipped model; the weights are drawn. The model
answers nonsense. It stands in for a checkpoint of yours where a command has to be tried.
"""

import argparse
import dataclasses
import pathlib

import numpy as np

from auditdm_jax.models import export, leaves, weights

SHAPES = pathlib.Path("data/scenes/weights/ref_gemma3")


def write(path: pathlib.Path, *, seed: int) -> None:
  """Writes the checkpoint; each tensor keeps the mean and the spread that the trained one has."""
  opened, drawn = weights.open_model(SHAPES), {}
  rng = np.random.default_rng(seed)
  for name, leaf in sorted(opened.tree.items()):
    trained = leaf.whole().astype(np.float32)
    noise = rng.normal(trained.mean(), trained.std(), leaf.shape)
    drawn[name] = leaves.of_array(noise.astype(np.float32))
  export.write_hf(path, dataclasses.replace(opened, tree=drawn))


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description="Writes a tiny random Gemma 3.")
  parser.add_argument("--output", type=pathlib.Path, required=True, help="the folder to make")
  parser.add_argument("--seed", type=int, default=0, help="of the weights")
  given = parser.parse_args()
  write(given.output, seed=given.seed)
  print(f"wrote {given.output}")
