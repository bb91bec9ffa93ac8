# SPDX-License-Identifier: Apache-2.0
"""What an image looks like, as terms of failure modes: `img:brightness < 0.2`, `img:cell 3`.

1. A few numbers are measured of each image: brightness, contrast, sharpness, edges, size, aspect.
   Edges stand for clutter, since nobody counts the objects of a photograph.
2. `Looks` are cut points at their quantiles, and the centres of k-means cells of the features of
   a frozen tower. They are fixed on the images of discovery, so that fresh images fall under the
   same rules.
3. `Gallery` reads images when it first needs them, at most `limit` of them. An image of which
   nothing is known has no term, so that it falls under no rule about images.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses

import numpy as np
from PIL import Image
from scipy.cluster import vq

from auditdm_jax.audit.probe import Probe
from auditdm_jax.audit.slices import NOWHERE
from auditdm_jax.core import streams

Features = Callable[[Sequence[str]], np.ndarray]  # ids -> f32[N,P,D] of a frozen tower

_LOW, _HIGH = (0.03, 0.06, 0.12, 0.25), (0.75, 0.88, 0.94, 0.97)
_SIDE = 256  # Pixels of the crop in which sharpness and edges are measured.
_CHUNK = 256  # Images whose features are held at once.


@dataclasses.dataclass(frozen=True)
class LooksConfig:
  """Whether failure modes may be about images, and how much is measured.

  Attributes:
    limit: most images that are measured in discovery, an even choice above that; 0 = none, so that
      modes are about questions and answers alone.
    cells: of the tower's features; 0 = none.
    width: random projections of the features that cells are made of.
  """

  limit: int = 5_000
  cells: int = 16
  width: int = 32


def measure(image: np.ndarray) -> dict[str, float]:
  """Returns the measures of u8[H,W,3]; brightness and contrast are in [0, 1]."""
  height, width = image.shape[:2]
  small = Image.fromarray(image)
  small.thumbnail((_SIDE, _SIDE))
  grey = np.asarray(small.convert("L"), np.float32) / 255
  top, left = max(height - _SIDE, 0) // 2, max(width - _SIDE, 0) // 2
  crop = image[top : top + _SIDE, left : left + _SIDE].astype(np.float32).mean(axis=2) / 255
  return {
    "brightness": float(grey.mean()),
    "contrast": float(grey.std()),
    "sharpness": _sharpness(crop),
    "edges": _edges(grey),
    "pixels": float(height * width),
    "aspect": width / height,
  }


def _sharpness(grey: np.ndarray) -> float:
  """Standard deviation of the Laplacian, which blur takes away."""
  if min(grey.shape) < 3:
    return 0.0
  inner = grey[1:-1, 1:-1]
  around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
  return float((around - 4 * inner).std())


def _edges(grey: np.ndarray) -> float:
  """Share of pixels that differ from the next one by more than a tenth."""
  down, right = np.abs(np.diff(grey, axis=0)), np.abs(np.diff(grey, axis=1))
  return float(((down > 0.1).sum() + (right > 0.1).sum()) / max(down.size + right.size, 1))


@dataclasses.dataclass(frozen=True)
class Looks:
  """Frozen cut points of measures, and cells of projected features.

  Attributes:
    low: of each measure, limits below which an image is told apart.
    high: limits above which it is.
    centres: of the cells, in units of `spread` around `middle`.
    middle: of the projected features.
    spread: of the projected features.
    seed: of the projection.
  """

  low: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
  high: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
  centres: tuple[tuple[float, ...], ...] = ()
  middle: tuple[float, ...] = ()
  spread: tuple[float, ...] = ()
  seed: int = 0

  @classmethod
  def fit(
    cls,
    measures: Sequence[Mapping[str, float]],
    projected: np.ndarray | None = None,
    *,
    cells: int = 0,
    seed: int = 0,
  ) -> "Looks":
    """Fixes cut points at quantiles of measures, and cells of f64[N,width] projected features."""
    low, high = {}, {}
    for name in measures[0] if measures else ():
      values = np.array([m[name] for m in measures])
      least, most = values.min(), values.max()
      low[name] = _cuts(values, _LOW, lambda c, least=least: c > least)
      high[name] = _cuts(values, _HIGH, lambda c, most=most: c < most)
    if projected is None or len(projected) < 4 * cells or not cells:
      return cls(low, high, seed=seed)
    middle, spread = projected.mean(axis=0), projected.std(axis=0) + 1e-9
    scaled = (projected - middle) / spread
    rng = streams.rng(seed, "looks", "cells")
    centres, _ = vq.kmeans2(scaled, cells, minit="++", rng=rng)
    return cls(low, high, *(_plain(x) for x in (centres, middle, spread)), seed=seed)

  def terms(self, measures: Mapping[str, float], projected: np.ndarray | None) -> frozenset[str]:
    """The terms of an image with these measures and f64[width] projected features."""
    found = []
    for name, value in measures.items():
      found += [f"img:{name} < {c:g}" for c in self.low.get(name, ()) if value < c]
      found += [f"img:{name} > {c:g}" for c in self.high.get(name, ()) if value > c]
    if projected is not None and self.centres:
      scaled = (projected - np.array(self.middle)) / np.array(self.spread)
      cell = ((np.array(self.centres) - scaled) ** 2).sum(axis=1).argmin()
      found.append(f"img:cell {cell}")
    return frozenset(found)


def _cuts(
  values: np.ndarray, quantiles: Sequence[float], tells: Callable[[float], bool]
) -> tuple[float, ...]:
  """Different quantiles in few digits, as they are written in terms."""
  cuts = (float(f"{q:.4g}") for q in np.quantile(values, quantiles))
  return tuple(sorted({c for c in cuts if tells(c)}))


def _plain(x: np.ndarray) -> tuple:
  if x.ndim == 1:
    return tuple(round(float(v), 5) for v in x)
  return tuple(_plain(row) for row in x)


class Gallery:
  """Terms of the images of probes; an image is read once."""

  def __init__(
    self,
    images: Callable[[str], np.ndarray],
    features: Features | None = None,
    *,
    config: LooksConfig = LooksConfig(),
    seed: int = 0,
  ):
    """Takes what loads u8[H,W,3] of an id, and the features of a frozen tower, if there is one."""
    self._images, self._features = images, features if config.cells else None
    self._config, self._seed = config, seed
    self._measures: dict[str, dict[str, float]] = {}
    self._projected: dict[str, np.ndarray] = {}

  def fit(self, probes: Sequence[Probe]) -> Looks | None:
    """Fixes cut points and cells on the images of probes; None if images are not looked at."""
    ids = self._chosen(probes)
    if not ids:
      return None
    self._look(ids)
    rows = np.stack([self._projected[i] for i in ids]) if self._features else None
    measures = [self._measures[i] for i in ids]
    return Looks.fit(measures, rows, cells=self._config.cells, seed=self._seed)

  def terms(self, looks: Looks | None, probes: Sequence[Probe]) -> list[frozenset[str]]:
    """The image's terms of each probe."""
    if looks is None:
      return [NOWHERE] * len(probes)
    ids = self._chosen(probes)
    self._look(ids)
    of = {i: looks.terms(self._measures[i], self._projected.get(i)) for i in ids}
    return [of[p.image_id] | made(p) if p.image_id in of else NOWHERE for p in probes]

  def _chosen(self, probes: Sequence[Probe]) -> list[str]:
    ids = sorted({p.image_id for p in probes})
    if len(ids) <= self._config.limit:
      return ids
    order = streams.rng(self._seed, "looks", "images").permutation(len(ids))
    return [ids[int(i)] for i in sorted(order[: self._config.limit])]

  def _look(self, ids: Sequence[str]) -> None:
    new = [i for i in ids if i not in self._measures]
    for start in range(0, len(new), _CHUNK):
      chunk = new[start : start + _CHUNK]
      self._measures |= {i: measure(self._images(i)) for i in chunk}
      if self._features:
        pooled = np.asarray(self._features(chunk), np.float64).mean(axis=1)
        rng = streams.rng(self._seed, "looks", "projection")
        onto = rng.standard_normal((pooled.shape[1], self._config.width))
        self._projected |= zip(chunk, pooled @ onto / np.sqrt(pooled.shape[1]))


def made(probe: Probe) -> frozenset[str]:
  """Whether the image was made, and how; photographs have no such term."""
  if probe.source_image_id in (None, probe.image_id):
    return NOWHERE
  return frozenset(["img:made", "img:made by an edit" if probe.instruction else "img:generated"])


def describe(word: str) -> str:
  """A term about images in words."""
  if word.startswith("cell "):
    return f"the image is of {word} of the tower's features"
  if word.startswith(("made", "generated")):
    return f"the image is {word}"
  return f"the image's {word}"
