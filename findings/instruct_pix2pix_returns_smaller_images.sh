#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# diffusers 0.42.1: StableDiffusionInstructPix2PixPipeline returns another size than it was given.
#
# Expected: an edited image of the source's size, or the ValueError that StableDiffusionPipeline
#   raises for a height or width that is not a multiple of 8.
# Seen: each side is rounded down to a multiple of 8 by resizing, without a warning: 64x43 comes back
#   as 64x40, 63x47 as 56x40, whose aspect is another (1.34 to 1.40). Pixels of source and edit do not
#   lie on each other, so a comparison outside of the edited region compares other places.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  diffusers==0.42.1 transformers==5.23.0 torch==2.13.0 pillow==12.0.0
cat >"$folder/seen.py" <<'PY'
import warnings

import diffusers
from PIL import Image
import torch

torch.manual_seed(0)
unet = diffusers.UNet2DConditionModel(
  block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, sample_size=8, in_channels=8,
  out_channels=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
  up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=16,
)
vae = diffusers.AutoencoderKL(
  block_out_channels=[8] * 4, norm_num_groups=4, latent_channels=4,
  down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
)
pipe = diffusers.StableDiffusionInstructPix2PixPipeline(
  vae=vae, text_encoder=None, tokenizer=None, unet=unet, scheduler=diffusers.DDIMScheduler(),
  safety_checker=None, feature_extractor=None, requires_safety_checker=False,
)
pipe.set_progress_bar_config(disable=True)
prompt = torch.zeros(1, 4, 16)
seen = {}
with warnings.catch_warnings(record=True) as caught:
  warnings.simplefilter("always")
  for size in ((64, 64), (64, 43), (63, 47)):
    image = Image.new("RGB", size, "red")
    seen[size] = pipe(
      image=image, prompt_embeds=prompt, negative_prompt_embeds=prompt, num_inference_steps=1,
      guidance_scale=1.0,
    ).images[0].size
about_size = [w for w in caught if "size" in str(w.message) or "divisible" in str(w.message)]
print(f"diffusers {diffusers.__version__}: {seen}, warnings about sizes: {len(about_size)}")
assert seen == {(64, 64): (64, 64), (64, 43): (64, 40), (63, 47): (56, 40)} and not about_size
PY
"$folder/venv/bin/python" "$folder/seen.py"
