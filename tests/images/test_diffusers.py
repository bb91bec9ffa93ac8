# SPDX-License-Identifier: Apache-2.0
"""The diffusers backend on tiny pipelines: every trap of the pipelines, and what it refuses."""

import dataclasses
import json
import logging
import pathlib
import shutil
import threading

import numpy as np
import pytest

pytest.importorskip("diffusers")

import torch  # noqa: E402

from auditdm_jax.images import diffusers_backend  # noqa: E402
from auditdm_jax.images.backend import Cancelled, Job  # noqa: E402
from auditdm_jax.images.diffusers_backend import DiffusersBackend  # noqa: E402
from tests.images import tiny_pipelines  # noqa: E402

STEPS = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return tiny_pipelines.build(tmp_path_factory.mktemp("distilled"))


@pytest.fixture(scope="module")
def backend(model):
  return DiffusersBackend(model, max_batch=8)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
  """A model without the guidance input, as FLUX.1-schnell."""
  model = tiny_pipelines.build(tmp_path_factory.mktemp("plain"), guidance=False)
  return DiffusersBackend(model, max_batch=2)


def _source(k, width=64, height=64):
  return np.random.default_rng(k).integers(0, 256, (height, width, 3), np.uint8)


def _job(k, text="a small red circle", *, edit=False, **fields):
  defaults = dict(
    seed=k, width=64, height=64, steps=STEPS, guidance=3.5, source=_source(k) if edit else None
  )
  return Job(f"r{k}", f"{text} {'abcdefgh'[k % 8]}", **(defaults | fields))


def _ignore(i, n):
  del i, n


def _images(backend, jobs):
  rows = backend.run(jobs, _ignore)
  assert not [row for row in rows if isinstance(row, Exception)]
  return [row.image for row in rows]


def _levels(a, b):
  """Largest difference of two images, in levels of 0 to 255."""
  return int(np.abs(a.astype(int) - b.astype(int)).max())


class _Spy:
  """Keeps what a module is called with."""

  def __init__(self, module, keep):
    self.seen = []
    self._hook = module.register_forward_pre_hook(
      lambda _, args, kwargs: self.seen.append(keep(args, kwargs)), with_kwargs=True
    )

  def __enter__(self):
    return self.seen

  def __exit__(self, *_):
    self._hook.remove()


def test_built_offline_in_a_second(tmp_path):
  tiny_pipelines.build(tmp_path)  # The libraries' lazy imports come at the first.
  timer = threading.Event()
  watch = threading.Timer(1.0, timer.set)
  watch.start()
  tiny_pipelines.build(tmp_path / "again")
  watch.cancel()
  assert not timer.is_set(), "building both pipelines took more than a second"


def test_images_depend_on_text_seed_and_source(backend):
  job = _job(1)
  a, b, c = (
    _images(backend, [j])[0]
    for j in (job, dataclasses.replace(job, text="a blue square"), dataclasses.replace(job, seed=2))
  )
  assert a.shape == (64, 64, 3) and a.dtype == np.uint8
  assert _levels(a, b) > 2 and _levels(a, c) > 10
  e, f = (_images(backend, [_job(1, edit=True, source=_source(s))])[0] for s in (1, 2))
  assert _levels(e, f) > 2
  assert _levels(a, e) > 2


@pytest.mark.parametrize("size", [(64, 64), (96, 48)])
def test_an_edit_keeps_the_size_of_its_source(backend, size):
  """The pipeline on its own makes a megapixel of both the source and the result."""
  width, height = size
  job = _job(0, edit=True, source=_source(0, width, height), width=width, height=height)
  tokens = 2 * (width // 16) * (height // 16)  # the image's and the source's
  transformer = backend._pipes["edit"].transformer
  with _Spy(transformer, lambda _, kwargs: kwargs["hidden_states"].shape[1]) as seen:
    image = _images(backend, [job])[0]
  assert image.shape == (height, width, 3)
  assert seen == [tokens] * STEPS


def test_no_size_is_rounded_by_kontext():
  """It takes the root of the area times the aspect: no float may be off at any multiple of 16."""
  for width in range(16, 2049, 16):
    for height in range(16, 2049, 16):
      area, aspect = width * height, width / height
      assert (round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)) == (width, height)


def test_sizes_are_multiples_of_sixteen(backend):
  assert backend.info().multiple == 16  # 70x50 would come back as 64x48; the server refuses it.


@pytest.mark.parametrize("edit", [False, True])
def test_a_row_is_bitwise_the_same_whatever_its_place_and_companions(backend, edit):
  jobs = [_job(k, edit=edit) for k in range(8)]
  want = _images(backend, [jobs[0]] * 8)[0]
  for place in (0, 3, 7):
    others = [dataclasses.replace(j, seed=j.seed + 100 * place) for j in jobs[1:]]
    got = _images(backend, others[:place] + [jobs[0]] + others[place:])[place]
    np.testing.assert_array_equal(got, want)


def test_another_number_of_rows_changes_the_last_bits_only(backend):
  jobs = [_job(k) for k in range(8)]
  batch = _images(backend, jobs)
  for n in (1, 2, 4):
    for k, image in enumerate(_images(backend, jobs[:n])):
      assert _levels(image, batch[k]) <= 1
  assert backend.info().batch_sizes == (1, 2, 4, 8)


def test_noise_is_drawn_on_the_cpu_from_each_rows_seed(backend):
  """As `torch.randn` of the row's own generator, whatever the device."""
  jobs = [_job(k) for k in (5, 2**64 - 1, 0)]
  transformer = backend._pipes["generate"].transformer
  with _Spy(transformer, lambda _, kwargs: kwargs["hidden_states"].clone()) as seen:
    _images(backend, jobs)
  for row, job in zip(seen[0], jobs, strict=True):
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator("cpu").manual_seed(job.seed))
    packed = noise.reshape(4, 4, 2, 4, 2).permute(1, 3, 0, 2, 4).reshape(16, 16)
    torch.testing.assert_close(row, packed, rtol=0, atol=0)


@pytest.mark.parametrize("edit", [False, True])
def test_progress_after_every_step(backend, edit):
  seen = []
  backend.run([_job(0, edit=edit, steps=3)], lambda i, n: seen.append((i, n)))
  assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_cancelled_batch_stops_at_once_and_leaves_the_pipeline_usable(backend):
  want = _images(backend, [_job(0)])[0]
  seen = []

  def cancel(i, n):
    seen.append(i)
    if i == 2:
      raise Cancelled

  with pytest.raises(Cancelled):
    backend.run([_job(1), _job(2)], cancel)
  assert seen == [1, 2]
  np.testing.assert_array_equal(_images(backend, [_job(0)])[0], want)


def test_too_large_a_batch_is_a_memory_error_and_nothing_is_kept(backend):
  want = _images(backend, [_job(0)])[0]
  transformer = backend._pipes["generate"].transformer

  def fail(*_):
    raise torch.OutOfMemoryError("CUDA out of memory")

  hook = transformer.register_forward_pre_hook(fail)
  try:
    with pytest.raises(MemoryError, match="2 rows of 64x64") as error:
      backend.run([_job(0), _job(1)], _ignore)
  finally:
    hook.remove()
  # A cause would hold on to the frames, and these to the tensors.
  assert error.value.__cause__ is None and error.value.__context__ is None
  np.testing.assert_array_equal(_images(backend, [_job(0)])[0], want)


@pytest.mark.parametrize(
  "fields",
  [dict(text="a red</s> circle"), dict(text="a<|endoftext|>b"), dict(negative="<pad>")],
  ids=str,
)
def test_a_text_that_names_a_special_token_is_refused_alone(plain, fields):
  """It could end the text for one encoder and not for the other."""
  honest = [_job(k, guidance=6.0, negative="a blue square") for k in range(2)]
  bad = dataclasses.replace(honest[1], **fields)
  want = _images(plain, honest)[0]
  good, refused = plain.run([honest[0], bad], _ignore)
  np.testing.assert_array_equal(good.image, want)
  assert isinstance(refused, ValueError) and "special token" in str(refused)
  with _Spy(plain._pipes["generate"].transformer, lambda *_: None) as seen:
    assert isinstance(plain.run([bad], _ignore)[0], ValueError)
  assert not seen


@pytest.mark.parametrize("text", ["a < b > c </ s>", "r\u00e9d \U0001f7e5 \u7ea2", "a <unk>"])
def test_letters_the_tokenizers_do_not_know_are_no_special_tokens(backend, text):
  assert _images(backend, [_job(0, text)])


def test_a_degenerate_image_is_its_rows_fault_alone(backend):
  want = _images(backend, [_job(0)] * 3)[0]
  vae = backend._pipes["generate"].vae

  def spoil(_, __, out):
    out[0][1], out[0][2] = float("nan"), -1.0
    return out

  decode = vae.decode
  vae.decode = lambda z, **options: spoil(None, None, decode(z, **options))
  try:
    rows = backend.run([_job(0)] * 3, _ignore)
  finally:
    vae.decode = decode
  np.testing.assert_array_equal(rows[0].image, want)
  assert [str(row) for row in rows[1:]] == [
    "degenerate: the image is not finite",
    "degenerate: the image is black",
  ]
  assert not any(isinstance(row, ValueError) for row in rows)  # That would blame the auditor.


def test_kontext_shares_what_is_equal(backend):
  generate, edit = backend._pipes["generate"], backend._pipes["edit"]
  for part in ("transformer", "text_encoder_2", "vae"):
    assert generate.components[part] is edit.components[part]


def test_only_equal_parts_are_shared(model, tmp_path):
  other = tiny_pipelines.build(tmp_path, seed=1)
  both = DiffusersBackend(dataclasses.replace(model, edit=other.edit), max_batch=1)
  generate, edit = both._pipes["generate"], both._pipes["edit"]
  assert generate.components["transformer"] is not edit.components["transformer"]
  assert generate.components["tokenizer_2"] is edit.components["tokenizer_2"]
  alone = DiffusersBackend(other, max_batch=1)
  want = _images(alone, [_job(0, edit=True)])[0]
  np.testing.assert_array_equal(_images(both, [_job(0, edit=True)])[0], want)


def test_one_folder_can_serve_both(model, backend):
  one = DiffusersBackend(dataclasses.replace(model, edit=model.generate), max_batch=8)
  assert one._pipes["edit"].transformer is one._pipes["generate"].transformer
  job = _job(0, edit=True)
  np.testing.assert_array_equal(_images(one, [job])[0], _images(backend, [job])[0])


def test_the_length_of_the_text_belongs_to_the_model(model, backend):
  """The padding is attended to, so the same caption at another length is another image."""
  longer = DiffusersBackend(dataclasses.replace(model, max_sequence_length=64), max_batch=1)
  assert _levels(_images(backend, [_job(0)])[0], _images(longer, [_job(0)])[0]) > 0
  assert longer.info().identity != backend.info().identity


def test_a_text_that_is_cut_says_so(backend, caplog):
  fits = _job(0, "a red circle " * 9 + "and a")  # 30 tokens, the letter that _job adds, the end
  cut = dataclasses.replace(fits, text=fits.text + " secret")
  diffusers_backend.diffusers.utils.logging.enable_propagation()
  with caplog.at_level(logging.WARNING):
    rows = backend.run([fits, cut], _ignore)
  diffusers_backend.diffusers.utils.logging.disable_propagation()
  assert [row.truncated for row in rows] == [False, True]
  assert not caplog.records  # A warning would quote the text.


def test_guidance_of_a_distilled_model_is_an_input(backend):
  assert not backend.info().negative
  a, b = (_images(backend, [_job(0, guidance=g)])[0] for g in (1.0, 8.0))
  assert _levels(a, b) > 0


def test_guidance_of_another_model_is_classifier_free(plain):
  """It would ignore the scale in silence."""
  assert plain.info().negative
  off, on = (_images(plain, [_job(0, guidance=g)])[0] for g in (1.0, 6.0))
  assert _levels(off, on) > 2
  negative = _images(plain, [_job(0, guidance=6.0, negative="a blue square")])[0]
  assert _levels(negative, on) > 0
  with _Spy(plain._pipes["generate"].transformer, lambda *_: None) as seen:
    _images(plain, [_job(0, guidance=1.0)])
    _images(plain, [_job(0, guidance=6.0)])
  assert len(seen) == STEPS + 2 * STEPS


def test_a_distilled_and_another_model_cannot_be_mixed(model, tmp_path):
  other = tiny_pipelines.build(tmp_path, guidance=False)
  with pytest.raises(ValueError, match="both be distilled"):
    DiffusersBackend(dataclasses.replace(model, edit=other.edit), max_batch=1)


def test_identity_is_that_of_the_weights(model, backend, tmp_path):
  again = DiffusersBackend(model, max_batch=8)
  other = DiffusersBackend(tiny_pipelines.build(tmp_path, seed=1), max_batch=8)
  assert again.info().identity == backend.info().identity != other.info().identity
  assert backend.info().name == "tiny-flux + tiny-kontext"


def test_the_size_deterministic_batches_are_padded_to_is_part_of_the_identity(model, backend):
  """The last bits depend on it: replicas that differ there must not answer for each other."""
  half = DiffusersBackend(model, max_batch=4)
  assert half.info().properties["max_batch"] == "4"
  assert half.info().identity != backend.info().identity


def test_a_sham_is_the_source_as_the_autoencoder_gives_it_back(backend):
  jobs = [_job(k, edit=True, sham=True, text="") for k in range(2)]
  vae = backend._pipes["edit"].vae
  with _Spy(backend._pipes["edit"].transformer, lambda *_: None) as seen:
    images = _images(backend, jobs)
  assert not seen
  for image, job in zip(images, jobs, strict=True):
    x = torch.from_numpy(job.source).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
      y = vae.decode(vae.encode(x).latent_dist.mode()).sample[0].permute(1, 2, 0)
    assert _levels(image, ((y / 2 + 0.5).clamp(0, 1) * 255).round().byte().numpy()) <= 1


def test_modes_are_those_that_have_a_model(model):
  assert DiffusersBackend(dataclasses.replace(model, edit=""), max_batch=1).info().modes == (
    "generate",
  )


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(generate="", edit=""), "name a pipeline"),
    (dict(generate="/nowhere"), "neither a folder with a model_index.json nor OWNER/NAME@COMMIT"),
    (dict(generate="black-forest-labs/FLUX.1-dev"), "40 hex digits"),
    (dict(generate="black-forest-labs/FLUX.1-dev@" + "a" * 40), "cannot fetch"),
    (dict(device="cuda"), "torch sees no GPU"),
    (dict(device="banana"), "device: 'banana'"),
    (dict(device="mps"), "device: 'mps'"),
    (dict(dtype="bfloat16"), "use float32"),
    (dict(dtype="int8"), "not one of bfloat16"),
  ],
)
def test_mistakes_are_said(model, change, message):
  if change.get("device") == "cuda" and torch.cuda.is_available():
    pytest.skip("there is a GPU")
  with pytest.raises(ValueError, match=message):
    DiffusersBackend(dataclasses.replace(model, **change), max_batch=1)


def _write(*path, text):
  def damage(folder):
    folder.joinpath(*path).write_text(text)

  return damage


def _other_heads(folder):
  path = folder / "transformer" / "config.json"
  fields = json.loads(path.read_text())
  path.write_text(json.dumps(fields | {"num_attention_heads": 4}))


def _transformer(*named):
  def damage(folder):
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"transformer": named}))

  return damage


def _without(name):
  def damage(folder):
    for path in (folder / name).iterdir():
      path.unlink()

  return damage


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (_write("model_index.json", text="{"), "model_index.json is not JSON"),
    (_write("model_index.json", text="{}"), "is a nameless class, not a FluxPipeline"),
    (_write("model_index.json", text="[]"), "is a nameless class, not a FluxPipeline"),
    (_transformer(None, None), "but only"),
    # What diffusers says of sizes depends on whether accelerate is there.
    (_transformer("diffusers", "SD3Transformer2DModel"), "SD3|expected shape"),
    (_other_heads, "size mismatch|expected shape"),
    (_write("tokenizer_2", "tokenizer.json", text="{}"), "KeyError"),
    (lambda folder: shutil.rmtree(folder / "tokenizer_2"), "has no folder tokenizer_2"),
    (lambda folder: shutil.rmtree(folder / "vae"), "has no folder vae"),
    (_without("tokenizer"), "tokenizer"),
    (_without("tokenizer_2"), "tokenizer_2"),
  ],
)
def test_a_pipeline_that_is_not_whole_is_one_line(model, tmp_path, damage, message):
  folder = tmp_path / "flux"
  shutil.copytree(model.generate, folder)
  damage(folder)
  with pytest.raises(ValueError, match=message) as error:
    DiffusersBackend(dataclasses.replace(model, generate=str(folder), edit=""), max_batch=1)
  text = str(error.value)
  assert text.startswith(f"config.images.model.generate: {folder}") and "\n" not in text
  assert len(text) < 1000


def test_what_else_lies_in_the_folder_does_not_matter(model, backend, tmp_path):
  for name in ("generate", "edit"):
    shutil.copytree(vars(model)[name], tmp_path / pathlib.Path(vars(model)[name]).name)
  for name in ("assets", "tiny-flux/assets", "tiny-flux/onnx"):
    (tmp_path / name).mkdir()
  (tmp_path / "tiny-flux" / "assets" / "grid.png").write_bytes(b"x")
  other = dataclasses.replace(
    model, generate=str(tmp_path / "tiny-flux"), edit=str(tmp_path / "tiny-kontext")
  )
  assert DiffusersBackend(other, max_batch=8).info().identity == backend.info().identity


def test_pickles_are_refused(model, tmp_path):
  tiny_pipelines.build(tmp_path)
  folder = tmp_path / "tiny-flux" / "transformer"
  weights = folder / "diffusion_pytorch_model.safetensors"
  torch.save({}, folder / "diffusion_pytorch_model.bin")
  weights.unlink()
  with pytest.raises(ValueError, match="safetensors"):
    DiffusersBackend(dataclasses.replace(model, generate=str(tmp_path / "tiny-flux")), max_batch=1)


def test_another_kind_of_pipeline_is_refused(model, tmp_path):
  tiny_pipelines.build(tmp_path)
  index = tmp_path / "tiny-flux" / "model_index.json"
  index.write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
  with pytest.raises(ValueError, match="StableDiffusionPipeline"):
    DiffusersBackend(dataclasses.replace(model, generate=str(tmp_path / "tiny-flux")), max_batch=1)


def test_the_codec_is_linear_and_loads_by_itself(tmp_path):
  torch.manual_seed(0)
  codec = diffusers_backend.PatchCodec(latent_channels=192)  # As many numbers as pixels.
  basis = torch.linalg.qr(torch.randn(768, 768))[0]
  (
    codec.basis.copy_(basis),
    codec.scale.copy_(torch.rand(768) + 0.5),
    codec.mean.copy_(torch.randn(768)),
  )
  pipe = tiny_pipelines.flux.pipeline(["a"], codec, tiny_pipelines.flux.Sizes(shift=5.0))
  pipe.save_pretrained(tmp_path / "flux")
  backend = DiffusersBackend(
    dataclasses.replace(
      tiny_pipelines.ModelConfig(), generate=str(tmp_path / "flux"), max_sequence_length=8
    ),
    max_batch=1,
  )
  loaded = backend._pipes["generate"].vae
  x = torch.randn(2, 3, 32, 48)
  z = loaded.encode(x).latents
  assert z.shape == (2, 192, 4, 6)
  torch.testing.assert_close(loaded.decode(z).sample, x, rtol=0, atol=1e-4)
  assert _images(backend, [_job(0, width=48, height=32)])[0].shape == (32, 48, 3)
