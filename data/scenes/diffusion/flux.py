# SPDX-License-Identifier: Apache-2.0
"""Small FLUX pipelines from nothing: true classes of diffusers and transformers, random weights.

Everything is made in memory: the tokenizers from a list of words, the models from their configs.
One transformer serves both modes: `FluxKontextPipeline(**flux.components)` edits with what
`FluxPipeline` generates with.
"""

from collections.abc import Sequence
import dataclasses
import json

from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
import torch
from transformers import (
  CLIPTextConfig,
  CLIPTextModel,
  CLIPTokenizer,
  T5Config,
  T5EncoderModel,
  T5TokenizerFast,
)

# How CLIP splits a text before its BPE.
_CLIP_SPLIT = (
  r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Of the three networks. `width` is heads x (time + row + column of the rotary embedding).

  Attributes:
    rope: channels of a head that carry (time, row, column); even.
    double: blocks with weights of their own for text and image.
    single: blocks that text and image share.
    guidance: whether the guidance scale is an input, as in FLUX.1-dev.
    shift: of the timesteps; None = by the number of image tokens, as in FLUX.1-dev.
  """

  heads: int = 2
  rope: tuple[int, int, int] = (4, 6, 6)
  double: int = 1
  single: int = 1
  clip_width: int = 32
  clip_layers: int = 1
  t5_width: int = 32
  t5_layers: int = 1
  guidance: bool = True
  shift: float | None = None


# Of the pipeline that learns to draw scenes: 2.3 M parameters.
SCENES = Sizes(
  heads=4,
  rope=(4, 14, 14),
  double=2,
  single=3,
  clip_width=32,
  clip_layers=1,
  t5_width=96,
  t5_layers=2,
  guidance=False,
  shift=5.0,
)


def pipeline(words: Sequence[str], vae: torch.nn.Module, sizes: Sizes = Sizes()) -> FluxPipeline:
  """A FluxPipeline with random weights; seed torch before for the same ones.

  Args:
    words: get tokens of their own; other words are spelt.
    vae: any autoencoder with `config.latent_channels`.
  """
  clip_tokenizer, t5_tokenizer = _clip_tokenizer(words), _t5_tokenizer(words)
  clip = CLIPTextModel(
    CLIPTextConfig(
      vocab_size=len(clip_tokenizer),
      hidden_size=sizes.clip_width,
      intermediate_size=4 * sizes.clip_width,
      projection_dim=sizes.clip_width,
      num_hidden_layers=sizes.clip_layers,
      num_attention_heads=2,
      # The true ones: with CLIP's default the pooled token is looked for in an old, wrong way.
      bos_token_id=clip_tokenizer.bos_token_id,
      eos_token_id=clip_tokenizer.eos_token_id,
      pad_token_id=clip_tokenizer.pad_token_id,
    )
  )
  t5 = T5EncoderModel(
    T5Config(
      vocab_size=len(t5_tokenizer),
      d_model=sizes.t5_width,
      d_ff=2 * sizes.t5_width,
      d_kv=sizes.t5_width // 2,
      num_heads=2,
      num_layers=sizes.t5_layers,
      dropout_rate=0.0,
      feed_forward_proj="gated-gelu",
      is_encoder_decoder=False,
      use_cache=False,
    )
  )
  transformer = FluxTransformer2DModel(
    patch_size=1,
    in_channels=4 * vae.config.latent_channels,
    num_layers=sizes.double,
    num_single_layers=sizes.single,
    attention_head_dim=sum(sizes.rope),
    num_attention_heads=sizes.heads,
    joint_attention_dim=sizes.t5_width,
    pooled_projection_dim=sizes.clip_width,
    guidance_embeds=sizes.guidance,
    axes_dims_rope=sizes.rope,
  )
  dynamic = sizes.shift is None
  return FluxPipeline(
    scheduler=FlowMatchEulerDiscreteScheduler(
      use_dynamic_shifting=dynamic, shift=3.0 if dynamic else sizes.shift
    ),
    vae=vae.eval(),
    text_encoder=clip.eval(),
    tokenizer=clip_tokenizer,
    text_encoder_2=t5.eval(),
    tokenizer_2=t5_tokenizer,
    transformer=transformer.eval(),
  )


def _clip_tokenizer(words: Sequence[str]) -> CLIPTokenizer:
  """A BPE of CLIP's kind, trained on the words; any byte can be spelt."""
  bpe = tokenizers.Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
  bpe.normalizer = normalizers.Sequence(
    [normalizers.NFC(), normalizers.Replace(tokenizers.Regex(r"\s+"), " "), normalizers.Lowercase()]
  )
  bpe.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(_CLIP_SPLIT), behavior="removed", invert=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  bpe.decoder = decoders.ByteLevel()
  letters = sorted(pre_tokenizers.ByteLevel.alphabet())
  bpe.train_from_iterator(
    list(words),
    trainers.BpeTrainer(
      vocab_size=2 * len(letters) + 4 * len(words),
      initial_alphabet=letters,
      end_of_word_suffix="</w>",
      show_progress=False,
    ),
  )
  model = json.loads(bpe.to_str())["model"]
  vocab = dict(model["vocab"])
  for token in (*letters, *(x + "</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"):
    vocab.setdefault(token, len(vocab))
  merges = [tuple(m) for m in model["merges"]]
  return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def _t5_tokenizer(words: Sequence[str]) -> T5TokenizerFast:
  """A unigram of T5's kind with one piece per word, and characters for the rest.

  Not trained: on so few words that would cut even those to pieces.
  """
  pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]  # The class wants this order.
  pieces += [("▁" + word, -1.0) for word in sorted(set(words))]
  pieces.append(("▁", -8.0))
  pieces += [(chr(c), -10.0) for c in range(33, 127)]
  return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=512)
