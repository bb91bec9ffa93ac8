# SPDX-License-Identifier: Apache-2.0
"""A tiny PaliGemma 2 with a random vision tower, in a folder as Hugging Face's; no download.

COMMAND
  python -m examples.tiny_checkpoint --output=models/tiny

It is a shipped model whose tower and projector are drawn anew: it talks, and sees nothing. It is a
stand-in for your own checkpoint where a command has to be tried. With a random decoder no reply
would end, and an audit says so before it begins.
"""

import argparse
import dataclasses
import pathlib

import numpy as np

from auditdm_jax.models import export, leaves, weights

TALKS = pathlib.Path("data/scenes/weights/target_easy")


def write(path: pathlib.Path, *, seed: int) -> None:
  """Writes the checkpoint; what is drawn keeps the mean and the spread of what it replaces."""
  opened = weights.open_model(TALKS)
  rng, tree = np.random.default_rng(seed), dict(opened.tree)
  for name in sorted(name for name in tree if name.startswith("img/")):
    trained = tree[name].whole().astype(np.float32)
    noise = rng.normal(trained.mean(), trained.std(), trained.shape)
    tree[name] = leaves.of_array(noise.astype(np.float32))
  export.write_hf(path, dataclasses.replace(opened, tree=tree))


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description="Writes a tiny PaliGemma 2 that sees nothing.")
  parser.add_argument("--output", type=pathlib.Path, required=True, help="the folder to make")
  parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
  given = parser.parse_args()
  write(given.output, seed=given.seed)
  print(f"wrote {given.output}")
