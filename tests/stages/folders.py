# SPDX-License-Identifier: Apache-2.0
"""Folders of images with questions that the models of the scenes world can answer."""

import json
import pathlib

from PIL import Image

from auditdm_jax.scenes.mix import Mix


def images_of_scenes(path: pathlib.Path, *, images: int, seed: int) -> None:
  """Writes images of scenes and a questions.jsonl with three questions and answers about each."""
  mix = Mix(seed=seed, scenes=1000, images=images, per_image=3)
  draw = mix.draw(0)
  path.mkdir(parents=True)
  for i in set(draw.image.tolist()):
    Image.fromarray(mix.pixels(i, i + 1)[0]).save(path / f"{i:03d}.png")
  rows = [
    {"image": f"{i:03d}.png", "question": q, "answer": a}
    for i, q, a in zip(draw.image, draw.texts, draw.answers, strict=True)
  ]
  (path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
