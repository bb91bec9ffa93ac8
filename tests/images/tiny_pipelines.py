# SPDX-License-Identifier: Apache-2.0
"""FLUX, FLUX Kontext and Stable Diffusion pipelines of few random weights, made offline."""

import importlib.util
import os
import pathlib
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from diffusers import (
  AutoencoderKL,
  DDIMScheduler,
  FluxKontextPipeline,
  StableDiffusionInstructPix2PixPipeline,
  UNet2DConditionModel,
)
import torch

from auditdm_jax.images.config import ModelConfig

_FLUX = pathlib.Path(__file__).parents[2] / "data" / "scenes" / "diffusion" / "flux.py"
WORDS = "a the small big red green blue circle square make remove paint and background".split()


def _load():
  """The builder as its own program sees it: a file, not a module of a package."""
  spec = importlib.util.spec_from_file_location("scenes_flux", _FLUX)
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module  # Its dataclasses look themselves up.
  spec.loader.exec_module(module)
  return module


flux = _load()


def vae() -> AutoencoderKL:
  """FLUX's class of autoencoder: 8x8 pixels are one latent of 4 channels."""
  return AutoencoderKL(
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(8,) * 4,
    layers_per_block=1,
    norm_num_groups=4,
    latent_channels=4,
    use_quant_conv=False,
    use_post_quant_conv=False,
    mid_block_add_attention=False,
    scaling_factor=0.36,
    shift_factor=0.12,
  )


def build(folder: pathlib.Path, *, seed: int = 0, guidance: bool = True) -> ModelConfig:
  """Saves the two pipelines, with one transformer; returns the config that serves them."""
  torch.manual_seed(seed)
  generate = flux.pipeline(WORDS, vae(), flux.Sizes(guidance=guidance))
  with torch.no_grad():
    for part in (generate.transformer, generate.vae):
      for weights in part.parameters():
        weights *= 2 if weights.ndim > 1 else 1  # Else text and source hardly show.
  generate.save_pretrained(folder / "tiny-flux")
  FluxKontextPipeline(**generate.components).save_pretrained(folder / "tiny-kontext")
  return ModelConfig(
    generate=str(folder / "tiny-flux"),
    edit=str(folder / "tiny-kontext"),
    device="cpu",
    steps=4,
    max_sequence_length=32,
  )


def pix2pix(*, seed: int = 0) -> StableDiffusionInstructPix2PixPipeline:
  """Stable Diffusion that edits: a U-Net over latents of 8x8 pixels, halved once more within."""
  torch.manual_seed(seed)
  parts = flux.pipeline(WORDS, vae(), flux.Sizes()).components
  unet = UNet2DConditionModel(
    in_channels=8,
    out_channels=4,
    block_out_channels=(8, 16),
    layers_per_block=1,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    cross_attention_dim=32,
    attention_head_dim=8,
    norm_num_groups=4,
  )
  pipe = StableDiffusionInstructPix2PixPipeline(
    parts["vae"],
    parts["text_encoder"],
    parts["tokenizer"],
    unet,
    DDIMScheduler(),
    safety_checker=None,
    feature_extractor=None,
    requires_safety_checker=False,
  )
  pipe.set_progress_bar_config(disable=True)
  return pipe
