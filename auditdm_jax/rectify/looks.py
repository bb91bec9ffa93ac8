# SPDX-License-Identifier: Apache-2.0
"""What a model is shown of pictures: pixels, made when they are needed, or features from a file.

Threads decode and resize. Images wait for their batch as bytes or float16, and not more of them
than a bound, whatever the number of pictures.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import os
import pathlib
import tempfile
from typing import Protocol

import grain
import jax.numpy as jnp
import numpy as np

from auditdm_jax.core import jsonio, paths, runtime
from auditdm_jax.models import multimodal, preprocess
from auditdm_jax.rectify import features
from auditdm_jax.rectify.examples import Example, Examples
from auditdm_jax.rectify.survey import Survey

_THREADS = min(16, os.cpu_count() or 1)
_AHEAD_BYTES = 1 << 28  # Of images that wait for their batch.
_AT_ONCE = 32  # Images that are encoded at once.


class Look(Protocol):
  """What a model is shown of the pictures of one part.

  Attributes:
    row_bytes: of an image while it waits for its batch.
  """

  row_bytes: int

  def read(self, number: int, example: Example) -> np.ndarray:
    """Returns one image as it waits for its batch; called by several threads."""
    ...

  def stack(self, images: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the images of a batch."""
    ...


class AsPixels:
  """Pixels for a tower that runs in the step, see `supervised.Batch`.

  They are u8[B,H,W,3], which the step scales to [-1, 1], or f32 if the model has another scale.
  """

  def __init__(self, size: int, how: preprocess.Pixels):
    self._size, self._how = size, how
    self.row_bytes = 3 * size**2
    half = (0.5, 0.5, 0.5)
    plain = how.rescale == 1 / 255 and how.mean == how.std == half
    self._in_step = plain or how.origin != "hf"

  def read(self, number: int, example: Example) -> np.ndarray:
    del number
    return square(example, size=self._size, how=self._how)

  def stack(self, images: Sequence[np.ndarray]) -> np.ndarray:
    if self._in_step:
      return np.stack(images)
    return preprocess.preprocess(images, size=self._size, how=self._how)


class AsFeatures:
  """Features f16[B,P,Dv] of a frozen tower, from a file; `numbers` i[N] are its rows by example."""

  def __init__(self, file: features.FeatureFile, numbers: np.ndarray):
    self._file, self._numbers, self.row_bytes = file, numbers, file.row_bytes

  def read(self, number: int, example: Example) -> np.ndarray:
    del example
    return self._file.read(int(self._numbers[number]))

  def stack(self, images: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack(images)


def square(example: Example, *, size: int, how: preprocess.Pixels) -> np.ndarray:
  """Returns u8[size,size,3] of an example's picture.

  Raises:
    UserError: it cannot be read.
  """
  return preprocess.square(example.open(), size=size, name=f"{example.where}: image", how=how)


def squares(
  source: Examples, chosen: Sequence[int] | np.ndarray, *, size: int, how: preprocess.Pixels
) -> Iterator[list[np.ndarray]]:
  """Yields the pictures of some examples u8[size,size,3] in order, some at a time."""
  opened = grain.MapDataset.range(len(chosen)).map(
    lambda i: square(source[int(chosen[i])], size=size, how=how)
  )
  with contextlib.closing(iter(threaded(opened, size=_AT_ONCE, row_bytes=3 * size**2))) as chunks:
    yield from chunks


def threaded(places: grain.MapDataset, *, size: int, row_bytes: int) -> grain.IterDataset:
  """Returns lists of `size` elements that threads make ahead; the last one may be shorter."""
  ahead = max(_THREADS, min(2 * size, _AHEAD_BYTES // row_bytes))
  options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=ahead)
  return places.to_iter_dataset(options).batch(size, batch_fn=list)


@contextlib.contextmanager
def opened(
  config: multimodal.VlmConfig,
  surveys: Sequence[Survey],
  eye: features.Eye,
  *,
  trains: bool,
  most: int,
  workdir: str | os.PathLike | None,
  name: str,
) -> Iterator[list[Look]]:
  """Opens what the model is shown of each source's pictures.

  That is pixels if the tower trains, or if the features of all pictures would take more than `most`
  bytes. Otherwise the features are computed here; their files are removed when all went well. Each
  process has those of all pictures, on its own disk.

  Args:
    config: the model.
    surveys: what the sources have.
    eye: how the model looks at pictures.
    trains: whether the tower trains.
    most: bytes on disk.
    workdir: where the files go, so that another run can go on with them; None, and folders that
      are not of this machine, stand for a temporary folder.
    name: of the run.

  Raises:
    UserError: a picture cannot be read, or the disk is full.
  """
  size, width = config.tower.image_size, config.tower.width
  shape = (config.mm_tokens or config.tower.num_patches, width)
  need = sum(len(s.first) for s in surveys) * features.row_bytes(shape)
  if trains or need > most:
    yield [AsPixels(size, eye.pixels)] * len(surveys)
    return

  def encode(pictures: Sequence[np.ndarray]) -> np.ndarray:
    return np.asarray(multimodal.pool(jnp.asarray(eye.encode(pictures)), config.mm_tokens))

  with contextlib.ExitStack() as stack:
    own = workdir
    if own is None or paths.is_remote(own):
      own = stack.enter_context(tempfile.TemporaryDirectory())
    folder = pathlib.Path(own) / "features"
    files: list[features.FeatureFile] = []
    for i, s in enumerate(surveys):
      key = jsonio.canonical_hash([s.digest, eye.identity, dataclasses.asdict(eye.pixels), shape])
      path = folder / f"{name}-{i}-{key[:16]}-{runtime.index()}.f16"
      files.append(features.FeatureFile(path, shape))
      stack.callback(files[-1].close)
    features.check_room(folder, need - sum(f.path.stat().st_size for f in files))
    done = [min(runtime.gather(len(file))) for file in files]  # All encode the same ones together.
    for file, s, start in zip(files, surveys, done, strict=True):
      file.cut(start)
      chosen = s.first[start:]
      file.fill(squares(s.source, chosen, size=size, how=eye.pixels), encode=encode)
    yield [AsFeatures(f, s.image) for f, s in zip(files, surveys, strict=True)]
    for file in files:
      file.remove()
    with contextlib.suppress(OSError):  # Another run has files there.
      folder.rmdir()
