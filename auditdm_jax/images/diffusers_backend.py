# SPDX-License-Identifier: Apache-2.0
"""FLUX pipelines of diffusers as a backend: FLUX.1 generates, FLUX.1 Kontext edits.

The pipelines have ways of their own that a service must not pass on to its callers:

  sizes      Kontext scales every image to about a megapixel, source and result, unless told not to.
  noise      Every row has a generator of its own, on the CPU: it depends on neither companions nor
             device. The arithmetic still does, in the last bits, on the number of rows: batches are
             padded to `Info.batch_sizes`.
  guidance   A distilled model takes the scale as an input. Any other ignores it in silence; there
             it is the scale of classifier-free guidance, against the negative prompt or none.
  text       T5's padding is attended to, so its length belongs to the model, not to a request.
             A text that names a special token is refused: the tokenizers would obey.
  threads    One call at a time: the scheduler counts its steps on the pipeline.
  logs       diffusers would log the end of a long prompt: prompts do not belong there.
"""

from collections.abc import Mapping, Sequence
import concurrent.futures
import hashlib
import json
import os
import pathlib
import re

# Before torch starts its threads: two teams that spin on a shared CPU cost twenty times the work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import diffusers  # noqa: E402
from diffusers import FluxKontextPipeline, FluxPipeline  # noqa: E402
from diffusers.configuration_utils import ConfigMixin, register_to_config  # noqa: E402
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput  # noqa: E402
from diffusers.models.autoencoders.vae import DecoderOutput  # noqa: E402
from diffusers.models.modeling_utils import ModelMixin  # noqa: E402
from diffusers.pipelines.flux.pipeline_flux_kontext import retrieve_latents  # noqa: E402
import huggingface_hub  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402
import torch  # noqa: E402
from torch.nn import functional  # noqa: E402
import transformers  # noqa: E402

from auditdm_jax.images.backend import Info, Job, Made, Mode, Progress  # noqa: E402
from auditdm_jax.images.config import ModelConfig  # noqa: E402

Pipe = FluxPipeline | FluxKontextPipeline

_COMMIT = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)@(?P<commit>[0-9a-f]{40})")
# The parts of a pipeline, without the single-file copy of the weights next to them.
_FILES = ("model_index.json", "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.model")
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_CLASSES = {"generate": FluxPipeline, "edit": FluxKontextPipeline}
_KINDS = ("FluxPipeline", "FluxKontextPipeline")  # Equal parts: one folder can serve both modes.
_PARTS = (
  "scheduler",
  "text_encoder",
  "text_encoder_2",
  "tokenizer",
  "tokenizer_2",
  "transformer",
  "vae",
)

_MAX_ERROR = 500  # characters


class DiffusersBackend:
  """FLUX pipelines behind images.backend.Backend.

  Raises:
    ValueError: a model that is not there, not whole or not of this kind, or a device or dtype that
      is not; one line.
  """

  def __init__(self, model: ModelConfig, *, max_batch: int):
    self._model = model
    self._device, dtype = _device(model.device), _dtype(model)
    if self._device.type == "cpu":
      torch.set_num_threads(1)  # More spin against each other; a second server uses a second core.
    else:
      torch.backends.cudnn.deterministic = True  # The same row at the same batch size, bit for bit.
    _quieten()
    found = {mode: _find(path) for mode, path in _named(model).items()}
    folders = {mode: folder for mode, (_, folder) in found.items()}
    for mode, folder in folders.items():
      _check_folder(mode, folder)
    digests = {folder: _digests(folder) for folder in set(folders.values())}
    self._pipes = _load(folders, digests, self._device, dtype)
    distilled = {bool(p.transformer.config.guidance_embeds) for p in self._pipes.values()}
    self._distilled = True in distilled
    if len(distilled) > 1:
      raise ValueError("config.images.model: generate and edit must both be distilled, or neither")
    self._info = Info(
      name=" + ".join(dict.fromkeys(name for name, _ in found.values())),
      revision=_combined(d for f in folders.values() for d in digests[f].values()),
      properties={
        "device": _device_name(self._device),
        "dtype": str(dtype).removeprefix("torch."),
        "max_sequence_length": str(model.max_sequence_length),
        "max_batch": str(max_batch),  # What deterministic batches are padded to.
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
      },
      modes=(*self._pipes, *(["sham"] if "edit" in self._pipes else [])),
      steps=model.steps,
      guidance=model.guidance,
      negative=not self._distilled,
      multiple=max(2 * p.vae_scale_factor for p in self._pipes.values()),
      batch_sizes=_batch_sizes(max_batch),
    )

  def info(self) -> Info:
    return self._info

  def run(self, jobs: Sequence[Job], progress: Progress) -> list[Made | Exception]:
    """Returns one row per job, all of one key; raises MemoryError when the batch is too large."""
    mode = jobs[0].mode
    pipe = self._pipes["generate" if mode == "generate" else "edit"]
    refused = [_refused(pipe, job) for job in jobs]
    if all(refused):
      return refused
    try:
      pixels = (_round_trip if mode == "sham" else self._draw)(pipe, jobs, progress)
    except torch.OutOfMemoryError:
      pixels = None
    if pixels is None:  # Out of the handler: the exception's frames hold the tensors.
      torch.cuda.empty_cache()
      raise MemoryError(f"{len(jobs)} rows of {jobs[0].width}x{jobs[0].height} do not fit")
    return [
      no or _row(row, self._truncates(pipe, job.text))
      for no, row, job in zip(refused, pixels, jobs, strict=True)
    ]

  @torch.inference_mode()
  def _draw(self, pipe: Pipe, jobs: Sequence[Job], progress: Progress) -> np.ndarray:
    """Returns f32[B,H,W,3] in [0, 1]."""
    head = jobs[0]

    def on_step(_, i, __, ___):
      progress(i + 1, head.steps)
      return {}

    options = {}
    if head.mode == "edit":
      options |= {
        "image": _sources(jobs),
        "max_area": head.width * head.height,
        "_auto_resize": False,
      }
    if self._distilled:
      options |= {"guidance_scale": head.guidance}
    elif head.guidance > 1:
      options |= {"true_cfg_scale": head.guidance, "negative_prompt": [j.negative for j in jobs]}
    return pipe(
      prompt=[job.text for job in jobs],
      width=head.width,
      height=head.height,
      num_inference_steps=head.steps,
      generator=[torch.Generator("cpu").manual_seed(job.seed) for job in jobs],
      max_sequence_length=self._model.max_sequence_length,
      callback_on_step_end=on_step,
      output_type="np",
      **options,
    ).images

  def _truncates(self, pipe: Pipe, text: str) -> bool:
    """Whether T5 sees only a part; CLIP always cuts at 77 tokens, for a summary of the text."""
    return len(pipe.tokenizer_2(text).input_ids) > self._model.max_sequence_length


def _refused(pipe: Pipe, job: Job) -> ValueError | None:
  """Told by the tokens and not by the letters: T5's tokenizer rewrites characters first."""
  for tokenizer in (pipe.tokenizer, pipe.tokenizer_2):
    # T5's unknown is an honest letter it has not; CLIP knows all, its unknown is its end.
    special = set(tokenizer.all_special_ids) - ({tokenizer.unk_token_id} - {tokenizer.eos_token_id})
    for text in (job.text, job.negative):
      if special & set(tokenizer(text, add_special_tokens=False).input_ids):
        return ValueError("the text names a special token of the model")
  return None


@torch.inference_mode()
def _round_trip(pipe: Pipe, jobs: Sequence[Job], progress: Progress) -> np.ndarray:
  """Returns f32[B,H,W,3] in [0, 1]: the sources as the autoencoder gives them back."""
  pixels = pipe.image_processor.preprocess(_sources(jobs)).to(pipe.device, pipe.vae.dtype)
  latents = retrieve_latents(pipe.vae.encode(pixels), sample_mode="argmax")
  decoded = pipe.vae.decode(latents, return_dict=False)[0]
  progress(1, 1)
  return pipe.image_processor.postprocess(decoded, output_type="np")


def _sources(jobs: Sequence[Job]) -> list[Image.Image]:
  return [Image.fromarray(job.source) for job in jobs]


class PatchCodec(ModelMixin, ConfigMixin):
  """A linear autoencoder of 16x16 patches in the place of FLUX's VAE, for small worlds.

  FLUX packs 2x2 latents into a token, so that one patch is one token. Its numbers are scaled
  coordinates along orthogonal directions, such as principal components: nothing is trained, and an
  error in one token stays in its patch.
  """

  @register_to_config
  def __init__(
    self,
    latent_channels: int = 40,  # A token has four times as many.
    scaling_factor: float = 1.0,
    shift_factor: float = 0.0,
    block_out_channels: tuple[int, ...] = (1, 1, 1, 1),  # 3 halvings: the pipelines count these.
  ):
    super().__init__()
    self.mean = torch.nn.Parameter(torch.zeros(768), requires_grad=False)
    self.basis = torch.nn.Parameter(torch.zeros(4 * latent_channels, 768), requires_grad=False)
    self.scale = torch.nn.Parameter(torch.ones(4 * latent_channels), requires_grad=False)

  def encode(self, x: torch.Tensor) -> AutoencoderTinyOutput:
    """Maps f32[B,3,H,W] to f32[B,C,H/8,W/8]."""
    patches = functional.pixel_unshuffle(x, 16) - self.mean[:, None, None]
    tokens = torch.einsum("cp,bphw->bchw", self.basis, patches) * self.scale[:, None, None]
    return AutoencoderTinyOutput(functional.pixel_shuffle(tokens, 2))

  def decode(self, z: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple:
    tokens = functional.pixel_unshuffle(z, 2) / self.scale[:, None, None]
    patches = torch.einsum("cp,bchw->bphw", self.basis, tokens) + self.mean[:, None, None]
    x = functional.pixel_shuffle(patches, 16)
    return DecoderOutput(x) if return_dict else (x,)


def _named(model: ModelConfig) -> dict[Mode, str]:
  """Returns the modes that have a model."""
  named = {m: p for m, p in (("generate", model.generate), ("edit", model.edit)) if p}
  if not named:
    raise ValueError("config.images.model.generate and .edit are empty: name a pipeline")
  return named


def _find(path: str) -> tuple[str, pathlib.Path]:
  """Name and folder of a pipeline; one named by its commit is fetched, unless offline."""
  if match := _COMMIT.fullmatch(path):
    try:
      folder = huggingface_hub.snapshot_download(
        match["id"], revision=match["commit"], allow_patterns=list(_FILES)
      )
    except (OSError, huggingface_hub.errors.HfHubHTTPError) as error:
      raise ValueError(f"config.images.model: cannot fetch {path}: {_line(error)}") from error
    return match["id"], pathlib.Path(folder)
  folder = pathlib.Path(path).resolve()
  if not (folder / "model_index.json").is_file():
    raise ValueError(
      f"config.images.model: {path!r} is neither a folder with a model_index.json nor"
      " OWNER/NAME@COMMIT with 40 hex digits"
    )
  return folder.name, folder


def _load(
  folders: Mapping[Mode, pathlib.Path],
  digests: Mapping[pathlib.Path, Mapping[str, str]],
  device: torch.device,
  dtype: torch.dtype,
) -> dict[Mode, Pipe]:
  """Returns the pipelines; parts with equal files are in memory once."""
  pipes, parts = {}, {}
  for mode, folder in folders.items():
    known = {n: parts[n, d] for n, d in digests[folder].items() if (n, d) in parts}
    try:
      pipe = _CLASSES[mode].from_pretrained(
        folder, dtype=dtype, use_safetensors=True, local_files_only=True, **known
      )
      _check_tokenizers(pipe)
      pipe.to(device)
    except Exception as error:  # The libraries raise whatever they stumble over.
      raise ValueError(f"config.images.model.{mode}: {folder}: {_line(error)}") from error
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
      if isinstance(part, torch.nn.Module):
        part.eval()
    for name, digest in digests[folder].items():
      parts[name, digest] = pipe.components[name]
    pipes[mode] = pipe
  return pipes


def _check_folder(mode: Mode, folder: pathlib.Path) -> None:
  """Raises ValueError for what is no FLUX pipeline, or not all of one."""
  where = f"config.images.model.{mode}: {folder}"
  try:
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise ValueError(f"{where}: model_index.json is not JSON: {_line(error)}") from error
  name = index.get("_class_name") if isinstance(index, dict) else None
  if name not in _KINDS:
    raise ValueError(f"{where} is a {name or 'nameless class'}, not a {' or '.join(_KINDS)}")
  if missing := [part for part in _PARTS if not (folder / part).is_dir()]:
    raise ValueError(f"{where} has no folder {', '.join(missing)}")


def _check_tokenizers(pipe: Pipe) -> None:
  """Raises ValueError for one that is blank: without their files they load all the same."""
  for name in ("tokenizer", "tokenizer_2"):
    tokenizer = pipe.components[name]
    if tokenizer.unk_token_id in tokenizer("red", add_special_tokens=False).input_ids:
      raise ValueError(f"{name} knows no words: its vocabulary is missing")


def _digests(folder: pathlib.Path) -> dict[str, str]:
  """Returns the hash of its files by part of the pipeline; other files there are not loaded."""
  parts = [folder / name for name in _PARTS]
  files = [f for part in parts for f in sorted(part.rglob("*")) if f.is_file()]

  def digest(file: pathlib.Path) -> str:
    with file.open("rb") as stream:
      return hashlib.file_digest(stream, "sha256").hexdigest()

  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    hashes = dict(zip(files, pool.map(digest, files)))
  return {
    part.name: _combined(
      f"{f.relative_to(part)} {h}" for f, h in hashes.items() if part in f.parents
    )
    for part in parts
  }


def _quieten() -> None:
  """No progress bars, and no warnings that quote what was written."""
  for log in (diffusers.utils.logging, transformers.utils.logging):
    log.disable_progress_bar()
    log.set_verbosity_error()


def _combined(texts) -> str:
  return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _line(error: Exception) -> str:
  """Libraries explain themselves at length."""
  return " ".join(f"{type(error).__name__}: {error}".split())[:_MAX_ERROR]


def _device(name: str) -> torch.device:
  try:
    device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
      raise ValueError(f"config.images.model.device: {name!r}, but torch sees no GPU")
    torch.zeros(1, device=device)
  except (RuntimeError, AssertionError) as error:
    raise ValueError(f"config.images.model.device: {name!r}: {_line(error)}") from error
  return device


def _device_name(device: torch.device) -> str:
  return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _dtype(model: ModelConfig) -> torch.dtype:
  on_cpu = _device(model.device).type == "cpu"
  name = model.dtype or ("float32" if on_cpu else "bfloat16")
  if name not in _DTYPES:
    raise ValueError(f"config.images.model.dtype: {name!r} is not one of {', '.join(_DTYPES)}")
  if on_cpu and name != "float32":
    raise ValueError(f"config.images.model.dtype: {name} on a CPU is slower by far; use float32")
  return _DTYPES[name]


def _batch_sizes(max_batch: int) -> tuple[int, ...]:
  """1, 2, 4, … and the largest."""
  powers = [2**k for k in range(max_batch.bit_length()) if 2**k < max_batch]
  return (*powers, max_batch)


def _row(pixels: np.ndarray, truncated: bool) -> Made | Exception:
  if not np.isfinite(pixels).all():
    return RuntimeError("degenerate: the image is not finite")
  image = (pixels * 255).round().astype(np.uint8)
  if not image.any():
    return RuntimeError("degenerate: the image is black")
  return Made(image, truncated)
