# SPDX-License-Identifier: Apache-2.0
"""Images are measured, cut points hold for fresh images, and modes may be about images."""

import dataclasses
import json

import numpy as np
import pytest

from auditdm_jax.audit.looks import Gallery, Looks, LooksConfig, made, measure
from auditdm_jax.audit.probe import Probe
from auditdm_jax.audit.skills import Seeds
from auditdm_jax.audit.taxonomy import Taxonomy, discover_modes
from auditdm_jax.core import jsonio, typed


def _noise(seed: int, level: int, size=(24, 32)) -> np.ndarray:
  rng = np.random.default_rng(seed)
  return np.clip(level + rng.normal(0, 20, (*size, 3)), 0, 255).astype(np.uint8)


def _blur(image: np.ndarray) -> np.ndarray:
  for axis in (0, 1):
    image = sum(np.roll(image.astype(np.float32), i, axis) for i in range(-2, 3)) / 5
  return image.astype(np.uint8)


def test_measures():
  dark, bright = measure(_noise(0, 40)), measure(_noise(0, 200))
  assert dark["brightness"] < 0.25 < 0.7 < bright["brightness"]
  blurred = measure(_blur(_noise(0, 128)))
  assert blurred["sharpness"] < 0.3 * measure(_noise(0, 128))["sharpness"]
  assert blurred["edges"] < measure(_noise(0, 128))["edges"]
  assert dark["pixels"] == 24 * 32 and dark["aspect"] == pytest.approx(32 / 24)
  for size in ((1, 1), (2, 700), (900, 3)):
    assert all(np.isfinite(x) for x in measure(_noise(0, 99, size)).values())


def test_cut_points_are_those_of_discovery_and_survive_json():
  measures = [{"brightness": i / 100, "pixels": 64.0} for i in range(101)]
  rng = np.random.default_rng(0)
  middles = 5 * rng.standard_normal((4, 6))
  features = np.concatenate([m + rng.standard_normal((50, 6)) for m in middles])
  looks = Looks.fit(measures, features, cells=4)
  assert looks.low["pixels"] == looks.high["pixels"] == (), "all images are of one size"
  assert looks.terms({"brightness": 0.04}, None) == {
    "img:brightness < 0.06",
    "img:brightness < 0.12",
    "img:brightness < 0.25",
  }
  again = typed.load(Looks, json.loads(json.dumps(jsonio.plain(looks))))
  cells = [looks.terms({}, f) for f in features]
  assert [again.terms({}, f) for f in features] == cells
  assert [len(set(cells[i : i + 50])) for i in (0, 50, 100, 150)] == [1] * 4
  assert len(set(cells)) == 4


def test_a_gallery_reads_each_image_once_and_at_most_its_limit():
  read = []

  def image(image_id):
    read.append(image_id)
    return _noise(int(image_id), 100 + int(image_id) % 50)

  probes = [Probe.make(str(i), q) for i in range(60) for q in ("a", "b")]
  gallery = Gallery(image, config=LooksConfig(limit=20), seed=1)
  looks = gallery.fit(probes)
  terms = gallery.terms(looks, probes)
  assert len(read) == len(set(read)) == 20
  assert len({p.image_id for p, t in zip(probes, terms, strict=True) if t}) <= 20
  assert gallery.terms(None, probes) == [frozenset()] * 120
  assert Gallery(image, config=LooksConfig(limit=0)).fit(probes) is None
  edited = dataclasses.replace(probes[0], source_image_id="x", instruction="make it red")
  assert made(edited) == {"img:made", "img:made by an edit"} and made(probes[0]) == frozenset()


@pytest.mark.parametrize("seed", range(3))
def test_dark_images_are_a_mode(seed, attempt):
  rng = np.random.default_rng(seed)
  images = {f"i{i}": _noise(i, 30 if i % 16 == 0 else 90 + i % 80) for i in range(480)}
  forms = ("what color is the {}", "is there a {}", "where is the {}", "how many {}s are there")
  attempts = []
  for i in images:
    for form in forms:
      question = form.format(rng.choice("dog cat cup tree".split()))
      failed = bool(rng.random() < (0.85 if int(i[1:]) % 16 == 0 else 0.05))
      one = attempt(question, "yes", failed)
      attempts.append(dataclasses.replace(one, probe=Probe.make(i, question)))
  gallery = Gallery(images.__getitem__, seed=seed)
  taxonomy = discover_modes(attempts, Seeds(()), gallery=gallery)
  assert len(taxonomy.modes) == 1 and taxonomy.modes[0].terms[0].startswith("img:brightness < ")
  assert "brightness" in taxonomy.modes[0].definition
  taxonomy = typed.load(Taxonomy, json.loads(json.dumps(jsonio.plain(taxonomy))))
  found = taxonomy.match_attempts(attempts, gallery)
  hard = [int(a.probe.image_id[1:]) % 16 == 0 for a in attempts]
  assert np.mean([(m is not None) == h for m, h in zip(found, hard, strict=True)]) > 0.99
  assert not any(taxonomy.match_attempts(attempts)), "without its image nobody knows"
