# SPDX-License-Identifier: Apache-2.0
"""Images of any size through real services: there, edited, and back on their own grid."""

import dataclasses
import types

import numpy as np
import pytest

pytest.importorskip("diffusers")

from PIL import Image  # noqa: E402
import torch  # noqa: E402

from auditdm_jax.audit.judge import Judge  # noqa: E402
from auditdm_jax.audit.probe import Probe  # noqa: E402
from auditdm_jax.core import image_store  # noqa: E402
from auditdm_jax.core.config import UserError  # noqa: E402
from auditdm_jax.images import fit, locality, server  # noqa: E402
from auditdm_jax.images.backend import Info, Made, Plain  # noqa: E402
from auditdm_jax.images.client import ImageClient  # noqa: E402
from auditdm_jax.images.config import ClientConfig, ImagesConfig, Limits  # noqa: E402
from auditdm_jax.images.diffusers_backend import DiffusersBackend  # noqa: E402
from auditdm_jax.images.failures import NoImageReason  # noqa: E402
from auditdm_jax.images.requests import Edit, Generate  # noqa: E402
from auditdm_jax.rl.draws import RolloutConfig  # noqa: E402
from auditdm_jax.scenes import image_backend, render  # noqa: E402
from auditdm_jax.scenes.mix import Mix  # noqa: E402
from auditdm_jax.stages import edits  # noqa: E402
from tests.images import fake, tiny_pipelines  # noqa: E402

SIZES = ((64, 43), (50, 37), (1, 1), (640, 427), (500, 375), (333, 500), (1080, 1080))
HUGE = ((1080, 1080), (4032, 3024))


def _photo(width, height, seed=0):
  """Shapes and texture on every scale, as a photograph has."""
  rng, image = np.random.default_rng(seed), np.zeros((256, 256, 3))
  for cells in (2, 7, 25, 90):
    noise = rng.integers(0, 256, (cells, cells, 3), np.uint8)
    image += np.asarray(Image.fromarray(noise).resize((256, 256)), float) / 4
  return np.array(Image.fromarray(image.astype(np.uint8)).resize((width, height)))


class Pix2Pix:
  """Stable Diffusion behind images.backend.Backend: sides are multiples of 8, there is no sham."""

  def __init__(self):
    torch.set_num_threads(1)
    self._pipe = tiny_pipelines.pix2pix()

  def info(self):
    return Info("tiny-sd", modes=("edit",), steps=1, multiple=self._pipe.vae_scale_factor)

  def run(self, jobs, progress):
    del progress
    pixels = self._pipe(
      [j.text for j in jobs],
      image=[Image.fromarray(j.source) for j in jobs],
      num_inference_steps=jobs[0].steps,
      generator=[torch.Generator().manual_seed(j.seed) for j in jobs],
      output_type="np",
    ).images
    return [Made((row * 255).round().astype(np.uint8)) for row in pixels]


class Painter(fake.FakeBackend):
  """Repaints the middle, and every pixel a little, as diffusion models do."""

  def __init__(self, **fields):
    super().__init__()
    self._info = Info("painter", modes=("generate", "edit", "sham"), multiple=16, **fields)
    self.sizes = []

  def _row(self, job):
    self.sizes.append((job.width, job.height))
    if job.source is None:
      return super()._row(job)
    noise = np.random.default_rng(job.seed).integers(-5, 6, job.source.shape)
    image = (job.source.astype(int) + noise).clip(0, 255).astype(np.uint8)
    if not job.sham:
      height, width, _ = image.shape
      image[height // 4 : height // 2, width // 4 : width // 2] = (255, 0, 255)
    return Made(image)


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
  model = tiny_pipelines.build(tmp_path_factory.mktemp("pipelines"))
  return DiffusersBackend(dataclasses.replace(model, steps=1), max_batch=1)


def _client(address, **fields):
  client = ImageClient(address, config=ClientConfig(deadline_s=60.0, retries=0, **fields))
  client.wait_ready(30.0)
  return client


def _serving(backend, **limits):
  return fake.serving(backend, ImagesConfig(width=64, height=64, limits=Limits(**limits)))


def _fits_of_edits(client, sizes):
  """Edits photographs of these sizes; how each was fitted."""
  futures = {s: client.edit(_photo(*s), "make the circle red", seed=1) for s in sizes}
  results = {size: future.result(60.0) for size, future in futures.items()}
  for size, result in results.items():
    assert result.failure is None, (size, result.failure)
    assert result.image.shape == (size[1], size[0], 3)
  return [result.fit.partition(">")[2] for result in results.values()]


@pytest.mark.parametrize("kind", ["flux", "sd"])
def test_photographs_of_any_size_are_edited_and_come_back(flux, kind):
  backend = flux if kind == "flux" else Pix2Pix()
  with _serving(backend, max_pixels=1 << 19) as (_, address, _), _client(address) as client:
    assert client.info().multiple == {"flux": 16, "sd": 8}[kind]
    fits = _fits_of_edits(client, SIZES)
  assert (
    fits
    == {
      "flux": [
        "64x48 pad",
        "64x48 pad",
        "16x16 pad",
        "640x432 pad",
        "512x384 pad",
        "336x512 pad",
        "720x720 scale",
      ],
      "sd": [
        "64x48 pad",
        "56x40 pad",
        "8x8 pad",
        "640x432 pad",
        "504x376 pad",
        "336x504 pad",
        "720x720 scale",
      ],
    }[kind]
  )


def test_the_largest_photographs_are_scaled_to_what_is_served(flux):
  with _serving(flux, max_pixels=1 << 16) as (_, address, _), _client(address) as client:
    assert _fits_of_edits(client, HUGE) == ["256x256 scale", "288x224 scale+pad"]
    made = client.generate("a red circle", seed=1, width=4032, height=3024).result(60.0)
  assert made.image.shape == (224, 288, 3) and made.fit == "4032x3024>288x224 drawn"


def test_a_generated_image_has_the_size_it_was_drawn_at(flux):
  with _serving(flux) as (_, address, _), _client(address) as client:
    made = client.generate("a red circle", seed=1, width=64, height=43).result(60.0)
    asked = client.generate("a red circle", seed=1, width=64, height=48).result(60.0)
  assert made.image.shape == (48, 64, 3) and (made.fit, asked.fit) == ("64x43>64x48 drawn", "")
  assert made.request_id == asked.request_id and asked.timings.cached


def test_a_tiny_image_is_shown_larger_and_comes_back_tiny():
  backend = Painter()
  with _serving(backend, min_side=32) as (_, address, _), _client(address) as client:
    results = [client.edit(_photo(*s), "x", seed=1).result(10.0) for s in ((1, 1), (50, 20))]
  assert [r.fit for r in results] == ["1x1>32x32 scale", "50x20>80x32 scale"]
  assert backend.sizes[-2:] == [(32, 32), (80, 32)]
  assert [r.image.shape for r in results] == [(1, 1, 3), (20, 50, 3)]


def test_an_edit_is_made_once_whatever_is_fitted(tmp_path):
  """Retries, the server's cache and the disk cache know a request by what the service sees."""
  backend, source = Painter(), _photo(61, 43)
  padded = np.pad(source, ((0, 5), (0, 3), (0, 0)), mode="edge")
  with _serving(backend) as (_, address, _):
    with _client(address, cache=str(tmp_path)) as client:
      first = client.edit(source, "x", seed=1).result(10.0)
      whole = client.edit(padded, "x", seed=1).result(10.0)
    assert whole.timings.tries == 0 and first.request_id == whole.request_id
    with _client(address) as client:
      again = client.edit(source, "x", seed=1).result(10.0)
  assert again.timings.cached and again.request_id == first.request_id
  np.testing.assert_array_equal(again.image, first.image)
  np.testing.assert_array_equal(whole.image[:43, :61], first.image)
  assert backend.sizes.count((64, 48)) == 1


# 640x427 is padded, 400x300 is scaled down and 40x30 up.
@pytest.mark.parametrize("size", [(640, 427), (400, 300), (40, 30), (64, 64)])
def test_a_local_edit_is_local_on_the_grid_of_its_source(size):
  limits = dict(max_pixels=1 << 19) if size[0] == 640 else dict(max_pixels=1 << 14, min_side=64)
  width, height = size
  source = _photo(width, height)
  with _serving(Painter(), **limits) as (_, address, _):
    with _client(address, local_edits=True) as client:
      edit = client.edit(source, "x", seed=1).result(10.0)
      sham = client.sham(source, edit.mask, seed=2).result(10.0)
    with _client(address) as client:
      whole = client.edit(source, "x", seed=1).result(10.0)
  assert edit.image.shape == sham.image.shape == whole.image.shape == source.shape
  np.testing.assert_array_equal(edit.image[~edit.mask], source[~edit.mask])
  np.testing.assert_array_equal(sham.image[~edit.mask], source[~edit.mask])
  middle = np.s_[height // 3 : 2 * height // 5, width // 3 : 2 * width // 5]
  assert edit.mask[middle].all() and 0.04 < edit.mask.mean() < 0.12
  assert (np.abs(edit.image[middle].astype(int) - (255, 0, 255)) <= 12).all()
  # What only scaling did is no part of the edit, though it is more than 24 levels at edges.
  far = np.abs(whole.image.astype(int) - source)[2 * height // 3 :]
  assert np.sqrt((far**2).mean()) < 16
  again, mask = locality.composite(source, edit.image)
  assert (mask == edit.mask).all() and (again == edit.image).all()


def test_what_scaling_loses_would_be_taken_for_the_edit():
  """The reason to look on the service's grid: without it this photograph's edges are pasted."""
  source = _photo(800, 600)
  source[400:, ::20] = source[400:, 1::20] = source[400:, 2::20] = 255  # railings
  with _serving(Painter(), max_pixels=1 << 14) as (_, address, _):
    with _client(address, local_edits=True) as client:
      edit = client.edit(source, "x", seed=1).result(10.0)
    with _client(address) as client:
      whole = client.edit(source, "x", seed=1).result(10.0)
  naive = locality.composite(source, whole.image)[1]
  assert naive.mean() > 1.5 * edit.mask.mean()


class Bank:
  """Models that see magenta where there is some."""

  judge = Judge()

  def answers(self, images, questions):
    assert len(images) == len(questions)
    far = [np.abs(image.astype(int) - (255, 0, 255)).max(-1).min() for image in images]
    return {"target": ["yes" if f < 20 else "no" for f in far]}


class _Source(dict):
  made: image_store.Images

  def __call__(self, image_id):
    return self[image_id]


@pytest.mark.parametrize("size", [(640, 427), (400, 300)])
def test_the_gates_of_an_edit_hold_on_the_grid_of_its_source(tmp_path, size):
  source, made = _photo(*size), image_store.Images(tmp_path)
  limits = dict(max_pixels=1 << 19) if size[0] == 640 else dict(max_pixels=1 << 14)
  with _serving(Painter(), **limits) as (_, address, _):
    with _client(address, local_edits=True) as client:
      image = client.edit(source, "x", seed=1).result(10.0).image
      images = _Source({made.id_of(source): source})
      images.made = made
      settings = types.SimpleNamespace(rollout=RolloutConfig())
      ctx = types.SimpleNamespace(images=images, client=client, settings=settings)
      probe = Probe.make(
        made.put(image), "is there magenta", strategy="edit", source_image_id=made.id_of(source)
      )
      (gates,) = edits.measure(ctx, Bank(), [probe])
  assert {g.name: g.passed for g in gates} == {
    "edit_outside": True,
    "edit_fraction": True,
    "sham_control": True,
  }


def test_scenes_are_what_they_were_to_the_bit():
  """64x64 goes as it is: the same requests under the same ids, and the same images."""
  draw = image_backend.ScenesBackend()
  info = Info("scenes", modes=("generate", "edit", "sham"), sizes=((64, 64),), exact=True)
  source = Mix(seed=3, scenes=100, images=2, per_image=1).pixels(0, 1)[0]
  caption, instruction = "a small red circle", "no such words"
  with fake.serving(Plain(draw, info), ImagesConfig()) as (_, address, _):
    with _client(address) as client:
      made = client.generate(caption, seed=5, width=64, height=64).result(10.0)
      edited = client.edit(source, instruction, seed=5).result(10.0)
      other = client.edit(source[:43, :60], instruction, seed=5).result(10.0)
  assert made.request_id == Generate(caption, 5, 64, 64).request_id and made.fit == ""
  (image,) = draw.generate([caption], [5], width=render.SIZE, height=render.SIZE)
  np.testing.assert_array_equal(made.image, image)
  assert edited.request_id == Edit(source, instruction, 5).request_id
  assert edited.failure.fault == "auditor"
  # A drawing that is scaled says something else: that is nobody's bad instruction.
  assert (other.failure.fault, other.failure.reason) == ("service", NoImageReason.INVALID_REQUEST)
  with pytest.raises(UserError, match="'scenes' takes images of 64x64 as they are, not 60x43"):
    fit.check(info, [(60, 43)])


def test_equal_services_that_take_different_sizes_are_refused():
  with _serving(Painter()) as (_, a, _), _serving(Painter(), max_pixels=1 << 14) as (_, b, _):
    with ImageClient([a, b]) as client, pytest.raises(ConnectionError, match="other sizes"):
      client.wait_ready(10.0)


def test_a_service_warms_up_at_a_size_that_it_takes():
  backend = Painter()
  with fake.serving(backend, ImagesConfig(width=70, height=50)):
    assert set(backend.sizes) == {(80, 64)}
  with pytest.raises(server.StartError, match="width, height: 'painter' takes no size at all"):
    with _serving(Painter(), max_pixels=200):
      pass
