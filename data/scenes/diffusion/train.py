# SPDX-License-Identifier: Apache-2.0
"""Trains a small FLUX pipeline that draws and edits scenes, from nothing, and measures it.

  python data/scenes/diffusion/train.py --workdir=runs/diffusion           # trains, or goes on
  python data/scenes/diffusion/train.py --workdir=runs/diffusion --measure

Runs in the environment of the image server (torch and no jax; scipy to measure), on a GPU if there
is one. What makes it work on so few images:

  1. The codec is linear: principal components of 16x16 cells, each a token of FLUX. Components are
     scaled by the root of their deviation, else the background would drown digits.
  2. Flow matching with the timesteps shifted to the noisy end, in training and sampling: with one
     token per cell the layout is decided there.
  3. One transformer for captions and edits: the source's tokens come behind the image's with
     another time in the rotary embedding, as FLUX Kontext has it.
  4. Blocks begin as the identity: their modulations and the last layer are zero. One head of two
     blocks begins with its eye on the same cell of the source, which takes long to find.
  5. Muon (Jordan et al. 2024) on the matrices of the blocks, Adam on the rest, an average of the
     weights for sampling. A tenth of the texts is empty, for classifier-free guidance.

The oracle of the world makes the images to learn from, and it alone says whether one is right.
"""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import sys
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(pathlib.Path(__file__).parents[3]))

from diffusers import FluxPipeline
import flux
import numpy as np
import torch
from torch.nn import functional

from auditdm_jax.audit import rates
from auditdm_jax.images.backend import Job
from auditdm_jax.images.config import ModelConfig
from auditdm_jax.images.diffusers_backend import DiffusersBackend, PatchCodec
from auditdm_jax.scenes import language, render, world

SIZES = flux.SCENES
TEXT = 24  # tokens, the end included
CHANNELS = 40  # of a latent; four times as many numbers per cell
TOKENS = world.CELLS


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How it is trained.

  Attributes:
    captions, edits: examples per step.
    pool: images of captions to draw from, and twice as many of edits; noise is always new.
    muon, adam: learning rates; both fall to zero over the last two thirds.
    average: of the weights, per step.
    every: steps between checkpoints.
  """

  steps: int = 1500
  captions: int = 32
  edits: int = 64
  pool: int = 10_000
  muon: float = 0.01
  adam: float = 2e-3
  average: float = 0.995
  empty: float = 0.1
  every: int = 100
  seed: int = 0


def make_codec(rng: np.random.Generator, scenes: int = 1500) -> PatchCodec:
  """The codec of the world's cells."""
  images = np.stack([render.render(world.sample_scene(rng), k) for k in range(scenes)])
  patches = functional.pixel_unshuffle(_pixels(images), 16)
  patches = patches.permute(0, 2, 3, 1).reshape(-1, 768).double()
  mean = patches.mean(0)
  _, values, basis = torch.linalg.svd(patches - mean, full_matrices=False)
  basis = basis[: 4 * CHANNELS]
  deviation = values[: 4 * CHANNELS] / len(patches) ** 0.5
  scale = deviation**-0.5
  scale /= (scale * deviation).square().mean().sqrt()  # The latents' square is 1 on average.
  codec = PatchCodec(latent_channels=CHANNELS)
  codec.mean.copy_(mean)
  codec.basis.copy_(basis)
  codec.scale.copy_(scale)
  return codec


def _pixels(images: np.ndarray) -> torch.Tensor:
  """u8[N,H,W,3] as f32[N,3,H,W] in [-1, 1]."""
  return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def encode(codec: PatchCodec, images: np.ndarray) -> torch.Tensor:
  """u8[N,64,64,3] as the tokens f32[N,16,4C] the pipelines pack them to."""
  z = codec.encode(_pixels(images)).latents
  return FluxPipeline._pack_latents(z, len(z), CHANNELS, z.shape[2], z.shape[3])


def caption_example(rng: np.random.Generator) -> tuple[str, np.ndarray]:
  """A caption that fits into the text, and an image that it allows."""
  while True:
    text = language.sample_caption(rng)
    if len(text.split()) < TEXT:
      seed = int(rng.integers(2**32))
      return text, render.render(language.read_caption(text, seed), seed)


def edit_example(rng: np.random.Generator) -> tuple[str, np.ndarray, np.ndarray]:
  """An instruction, the image before and the image after."""
  scene = world.sample_scene(rng)
  text = language.sample_edit(rng, scene)
  seed = int(rng.integers(2**32))
  before = render.render(scene, seed)
  return text, before, render.redraw(before, scene, language.read_edit(text, scene), seed + 1)


class Pool:
  """Examples as tokens; entry 0 of the texts is the empty one."""

  def __init__(self, pipe: FluxPipeline, rng: np.random.Generator, size: int, *, edits: bool):
    examples = [(edit_example if edits else caption_example)(rng) for _ in range(size)]
    texts = ["", *(e[0] for e in examples)]
    options = dict(padding="max_length", truncation=True, return_tensors="pt")
    self.clip = pipe.tokenizer(texts, max_length=77, **options).input_ids[:, : TEXT + 1]
    self.t5 = pipe.tokenizer_2(texts, max_length=TEXT, **options).input_ids
    self.after = encode(pipe.vae, np.stack([e[-1] for e in examples]))
    self.before = encode(pipe.vae, np.stack([e[1] for e in examples])) if edits else None

  def to(self, device: torch.device) -> "Pool":
    for name in ("clip", "t5", "after"):
      setattr(self, name, vars(self)[name].to(device))
    self.before = None if self.before is None else self.before.to(device)
    return self


def loss(pipe: FluxPipeline, pool: Pool, rows: torch.Tensor, empty: torch.Tensor) -> torch.Tensor:
  """Mean squared error of the velocity at shifted times; rows i64[B], empty bool[B]."""
  x = pool.after[rows]
  texts = torch.where(empty, 0, rows + 1)
  # CLIP looks back only, from the end of the text: its padding can be left out.
  pooled = pipe.text_encoder(pool.clip[texts]).pooler_output
  words = pipe.text_encoder_2(pool.t5[texts])[0]
  t = torch.rand(len(x), device=x.device)
  t = SIZES.shift * t / (1 + (SIZES.shift - 1) * t)
  noise = torch.randn_like(x)
  noisy = torch.lerp(x, noise, t[:, None, None])
  ids = _positions(0, x.device)
  if pool.before is not None:
    noisy = torch.cat([noisy, pool.before[rows]], 1)
    ids = torch.cat([ids, _positions(1, x.device)])
  velocity = pipe.transformer(
    hidden_states=noisy,
    timestep=t,
    pooled_projections=pooled,
    encoder_hidden_states=words,
    txt_ids=torch.zeros(TEXT, 3, device=x.device),
    img_ids=ids,
    return_dict=False,
  )[0][:, :TOKENS]
  return (velocity - (noise - x)).square().mean()


def _positions(when: int, device: torch.device) -> torch.Tensor:
  """f32[16,3]: (time, row, column)."""
  ids = FluxPipeline._prepare_latent_image_ids(1, world.GRID, world.GRID, device, torch.float32)
  ids[:, 0] = when
  return ids


class Optimizer:
  """Muon for the matrices of the blocks, Adam for the rest."""

  def __init__(self, modules: dict[str, torch.nn.Module]):
    named = [(f"{m}.{n}", p) for m, module in modules.items() for n, p in module.named_parameters()]
    self.weights = [p for _, p in named]
    matrices = [p for n, p in named if p.ndim == 2 and "block" in n and "embed" not in n]
    chosen = {id(p) for p in matrices}
    self.adam = torch.optim.Adam(
      [p for p in self.weights if id(p) not in chosen], betas=(0.9, 0.95)
    )
    groups = collections.defaultdict(list)
    for p in matrices:
      groups[p.shape].append(p)
    self.groups = list(groups.values())
    self.momenta = [torch.zeros(len(g), *g[0].shape, device=g[0].device) for g in self.groups]

  @torch.no_grad()
  def step(self, *, muon: float, adam: float) -> None:
    torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
    self.adam.param_groups[0]["lr"] = adam
    self.adam.step()
    for group, momentum in zip(self.groups, self.momenta):
      gradient = torch.stack([p.grad for p in group])
      momentum.lerp_(gradient, 0.05)
      update = orthogonal(gradient.lerp(momentum, 0.95))
      rows, columns = group[0].shape
      for p, u in zip(group, update):
        p.add_(u, alpha=-muon * max(1.0, rows / columns) ** 0.5)
    for p in self.weights:
      p.grad = None

  def state(self) -> dict:
    return {"adam": self.adam.state_dict(), "momenta": self.momenta}

  def load(self, state: dict) -> None:
    self.adam.load_state_dict(state["adam"])
    self.momenta = state["momenta"]


def orthogonal(x: torch.Tensor, steps: int = 5) -> torch.Tensor:
  """f32[N,R,C] with its singular values brought near one, by Muon's quintic iteration."""
  a, b, c = 3.4445, -4.7750, 2.0315
  tall = x.shape[-2] > x.shape[-1]
  x = x.mT if tall else x
  x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
  for _ in range(steps):
    square = x @ x.mT
    x = a * x + (b * square + c * square @ square) @ x
  return x.mT if tall else x


def zero_modulations(transformer: torch.nn.Module) -> None:
  for name, p in transformer.named_parameters():
    if name.startswith(("norm_out.linear", "proj_out")) or ".norm" in name and ".linear" in name:
      torch.nn.init.zeros_(p)


def look_at_source(transformer: torch.nn.Module) -> None:
  """Biases that make head 0 of the first blocks attend to its own row and column one time on.

  A rotary pair turns by its position: constant queries and keys in the fastest pair of each axis
  match best where the positions are equal, or for time, by the query's phase, one apart.
  """
  pairs = (0, SIZES.rope[0], SIZES.rope[0] + SIZES.rope[1])
  phases = (1.0, 0.0, 0.0)
  with torch.no_grad():
    for block in (transformer.transformer_blocks[0], transformer.single_transformer_blocks[0]):
      for pair, phase in zip(pairs, phases):
        two = slice(pair, pair + 2)
        block.attn.to_q.bias[two] = 4 * torch.tensor([np.cos(phase), np.sin(phase)])
        block.attn.to_k.bias[two] = torch.tensor([4.0, 0.0])
        block.attn.norm_q.weight[two] = block.attn.norm_k.weight[two] = 2.0


def train(workdir: pathlib.Path, recipe: Recipe, device: torch.device) -> None:
  """Trains to the end of the recipe, from the last checkpoint if there is one."""
  torch.manual_seed(recipe.seed)
  rng = np.random.default_rng(recipe.seed)
  pipe = flux.pipeline(language.words(), make_codec(rng), SIZES)
  zero_modulations(pipe.transformer)
  look_at_source(pipe.transformer)
  pools = (
    (Pool(pipe, rng, recipe.pool, edits=False).to(device), recipe.captions),
    (Pool(pipe, rng, 2 * recipe.pool, edits=True).to(device), recipe.edits),
  )
  modules = dict(transformer=pipe.transformer, clip=pipe.text_encoder, t5=pipe.text_encoder_2)
  for module in modules.values():
    module.to(device).train()
  optimizer = Optimizer(modules)
  averages = [p.detach().clone() for p in optimizer.weights]
  workdir.mkdir(parents=True, exist_ok=True)
  file, first = workdir / "checkpoint.pt", 0
  if file.exists():
    saved = torch.load(file, map_location=device, weights_only=True)
    first, averages = saved["step"], saved["averages"]
    optimizer.load(saved["optimizer"])
    for p, value in zip(optimizer.weights, saved["weights"], strict=True):
      p.data.copy_(value)
  start = time.process_time()
  for step in range(first, recipe.steps):
    torch.manual_seed(recipe.seed * 1_000_003 + step)  # A resumed run is the same run.
    losses = []
    for pool, size in pools:
      rows = torch.randint(len(pool.after), (size,)).to(device)
      empty = (torch.rand(size) < recipe.empty).to(device)
      value = loss(pipe, pool, rows, empty)
      (value * size / (recipe.captions + recipe.edits)).backward()
      losses.append(value.item())
    left = min(1.0, 1.5 * (1 - step / recipe.steps), (step + 1) / 50)
    optimizer.step(muon=recipe.muon * left, adam=recipe.adam * left)
    decay = min(recipe.average, step / (step + 10))
    for average, p in zip(averages, optimizer.weights):
      average.lerp_(p.data, 1 - decay)
    if (step + 1) % recipe.every == 0 or step + 1 == recipe.steps:
      seconds = time.process_time() - start
      print(
        json.dumps(
          {"step": step + 1, "captions": losses[0], "edits": losses[1], "cpu_s": round(seconds, 1)}
        ),
        flush=True,
      )
      state = {
        "step": step + 1,
        "averages": averages,
        "optimizer": optimizer.state(),
        "weights": [p.data for p in optimizer.weights],
      }
      torch.save(state, file.with_suffix(".tmp"))
      file.with_suffix(".tmp").replace(file)
  for p, average in zip(optimizer.weights, averages):
    p.data.copy_(average)
  # Half the bytes; the server computes in float32 with the same numbers.
  for module in (*modules.values(), pipe.vae):
    module.eval().cpu().half()
  pipe.save_pretrained(workdir / "pipeline")


def measure(folder: pathlib.Path, *, n: int, steps: int, guidance: float, seed: int = 1) -> dict:
  """Share of images that show what was asked for and nothing else, by kind."""
  model = ModelConfig(
    generate=str(folder),
    edit=str(folder),
    steps=steps,
    guidance=guidance,
    max_sequence_length=TEXT,
  )
  backend, rng = DiffusersBackend(model, max_batch=32), np.random.default_rng((7, seed))
  right, total = collections.Counter(), collections.Counter()
  for editing in (False, True):
    for start in range(0, n, 32):
      jobs = []
      for k in range(start, min(start + 32, n)):
        text, *images = edit_example(rng) if editing else caption_example(rng)
        jobs.append(Job(str(k), text, k, 64, 64, images[0] if editing else None, steps, guidance))
      for job, row in zip(jobs, backend.run(jobs, lambda i, n: None), strict=True):
        made = render.parse(row.image)
        if editing:
          good = made == language.read_edit(job.text, render.parse(job.source))
          kinds = ("edits", "edit: " + job.text.split()[0])
        else:
          good = language.shows(job.text, made)
          kinds = ("captions", f"caption: {1 + job.text.count(' and ')} parts")
        total.update(kinds)
        right.update(kinds if good else ())
  return {kind: rates.rate(right[kind], total[kind]) for kind in sorted(total)}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--steps", type=int, default=Recipe.steps)
  parser.add_argument("--measure", action="store_true", help="measure what was trained")
  parser.add_argument("--n", type=int, default=320, help="images of each mode to measure")
  parser.add_argument("--sampling-steps", type=int, default=12)
  parser.add_argument("--guidance", type=float, default=2.0)
  args = parser.parse_args()
  if args.measure:
    folder = args.workdir / "pipeline"
    result = measure(folder, n=args.n, steps=args.sampling_steps, guidance=args.guidance)
    for kind, r in result.items():
      low, high = r["ci95"]
      print(f"{kind:24} {100 * r['rate']:5.1f} [{100 * low:.1f}, {100 * high:.1f}] % of {r['n']}")
    return
  device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
  if device.type == "cpu":
    torch.set_num_threads(1)
  train(args.workdir, dataclasses.replace(Recipe(), steps=args.steps), device)


if __name__ == "__main__":
  main()
