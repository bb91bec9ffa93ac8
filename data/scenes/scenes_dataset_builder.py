# SPDX-License-Identifier: Apache-2.0
"""TFDS builder of drawn worlds: rendered images, the scenes they show, questions and answers.

Splits: `pool` (what the auditor looks at), `heldout` (the benchmark) and `rounds` (fresh images
for the rates of known modes and for second rounds). In the world needle, pool and rounds hardly
show some of its words, and half of the held-out questions are about names, in which the gaps are.
An example is a pure function of (seed, split, index), and the splits draw from separate streams.

COMMAND (no TensorFlow needed):
  python data/scenes/scenes_dataset_builder.py --data_dir=DIR [--config=tiny | needle]
Reading: `auditdm_jax.core.pool.open_tfds(DIR / "scenes/default/1.1.0", "pool")`.
"""

import argparse
from collections.abc import Iterator
import dataclasses
import pathlib
import sys
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from auditdm_jax.core import streams
from auditdm_jax.scenes import questions, render, world
from auditdm_jax.scenes.needle import NEEDLE

SPLITS = ("pool", "heldout", "rounds")
_SEED_BITS = 2**31


@dataclasses.dataclass(kw_only=True)
class ScenesConfig(tfds.core.BuilderConfig):
  """How many images each split has, and how many questions come with an image."""

  pool: int = 10_000
  heldout: int = 750
  rounds: int = 2500
  questions: int = 8
  seed: int = 0
  language: world.Language = world.SCENES


def make_example(config: ScenesConfig, split: str, index: int) -> dict[str, Any]:
  """The example of (seed, split, index); see `Builder._info` for its fields."""
  rng = streams.rng(config.seed, "example", split, index)
  heldout = split == "heldout"
  scene = world.sample_scene(rng, config.language, pool=not heldout)
  weights = questions.half_names(config.language) if heldout else None
  image = render.render(scene, int(rng.integers(_SEED_BITS)))
  asked = {}
  for _ in range(8 * config.questions):
    text, answer, _ = questions.sample_question(rng, scene, weights=weights)
    asked.setdefault(text, answer)
    if len(asked) == config.questions:
      break
  return {
    "index": index,
    "image": image,
    "scene": scene.to_json(),
    "questions": list(asked),
    "answers": list(asked.values()),
  }


class Builder(tfds.core.GeneratorBasedBuilder):
  """The scenes world as a data set."""

  name = "scenes"
  VERSION = tfds.core.Version("1.1.0")
  RELEASE_NOTES = {
    "1.0.0": "First version.",
    "1.1.0": "10,000 images in the pool, not 6,000.",
  }
  BUILDER_CONFIGS = [
    ScenesConfig(name="default", description="The audit's images."),
    ScenesConfig(name="tiny", description="For tests.", pool=12, heldout=8, rounds=8, questions=3),
    ScenesConfig(
      name="needle",
      description="The larger world.",
      heldout=2500,
      questions=12,
      language=NEEDLE,
    ),
    ScenesConfig(
      name="needle_tiny",
      description="The larger world, for tests.",
      pool=12,
      heldout=8,
      rounds=8,
      questions=3,
      language=NEEDLE,
    ),
  ]

  def _info(self) -> tfds.core.DatasetInfo:
    size = render.pixels(self.builder_config.language)
    features = tfds.features.FeaturesDict(
      {
        "index": np.int64,
        "image": tfds.features.Tensor(shape=(size, size, 3), dtype=np.uint8, encoding="bytes"),
        "scene": tfds.features.Text(),
        "questions": tfds.features.Sequence(tfds.features.Text()),
        "answers": tfds.features.Sequence(tfds.features.Text()),
      }
    )
    # The index of an example in its split is its place, so a pool can be named by split and index.
    return tfds.core.DatasetInfo(
      builder=self, description=__doc__, features=features, disable_shuffling=True
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
    del dl_manager
    return {split: self._generate_examples(split) for split in SPLITS}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    config = self.builder_config
    sizes = {"pool": config.pool, "heldout": config.heldout, "rounds": config.rounds}
    for index in range(sizes[split]):
      yield index, make_example(config, split, index)


def prepare(data_dir: str, *, config: str | ScenesConfig = "default") -> pathlib.Path:
  """Builds the data set if it is not there and returns its folder, for `open_tfds`."""
  builder = Builder(data_dir=data_dir, config=config, file_format="array_record")
  builder.download_and_prepare()
  return pathlib.Path(builder.data_path)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--data_dir", required=True)
  parser.add_argument("--config", default="default")
  args = parser.parse_args()
  if not sys.stderr.isatty():
    tfds.disable_progress_bar()
  print(prepare(args.data_dir, config=args.config))


if __name__ == "__main__":
  main()
