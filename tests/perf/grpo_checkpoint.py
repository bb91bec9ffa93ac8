# SPDX-License-Identifier: Apache-2.0
"""The random Gemma 3 checkpoint that both sides of test_grpo_step load, made by transformers.

COMMAND
  python -m tests.perf.grpo_checkpoint FOLDER SIZE
"""

import pathlib
import sys

from tokenizers import Tokenizer, models, pre_tokenizers
import torch
import transformers
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3Processor

from tests.perf import grpo_sizes

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_image>", "<end_of_image>", "<image>")
TEMPLATE = (
  "{% for m in messages %}{% for part in m['content'] %}{% if part['type'] == 'image' %}"
  "<start_of_image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


def make(folder: pathlib.Path, size: grpo_sizes.Size) -> None:
  """Random weights; norms' scales too, so that nothing is trivially flat."""
  torch.manual_seed(0)
  config = Gemma3Config(
    text_config=dict(
      vocab_size=size.vocab, hidden_size=size.width, intermediate_size=size.mlp,
      num_hidden_layers=size.depth, num_attention_heads=size.heads,
      num_key_value_heads=size.kv_heads, head_dim=size.head_dim, sliding_window=512,
      query_pre_attn_scalar=size.head_dim, max_position_embeddings=2048,
      pad_token_id=0, eos_token_id=1, bos_token_id=2,
    ),
    vision_config=dict(
      hidden_size=size.vision_width, intermediate_size=2 * size.vision_width,
      num_hidden_layers=size.vision_depth, num_attention_heads=4, image_size=size.image,
      patch_size=size.patch, vision_use_head=False,
    ),
    mm_tokens_per_image=size.image_tokens, image_token_index=6, boi_token_index=4,
    eoi_token_index=5, eos_token_id=1, pad_token_id=0, bos_token_id=2, tie_word_embeddings=True,
  )  # fmt: skip
  model = Gemma3ForConditionalGeneration(config)
  model.save_pretrained(folder)
  vocab = {w: i for i, w in enumerate([*SPECIAL, *(f"w{i}" for i in range(7, size.vocab))])}
  words = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
  words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>",
    unk_token="<unk>",
    extra_special_tokens={
      "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image>",
    },
  )  # fmt: skip
  images = transformers.Gemma3ImageProcessor(
    size={"height": size.image, "width": size.image}, image_seq_length=size.image_tokens
  )
  processor = Gemma3Processor(
    images, tokenizer, chat_template=TEMPLATE, image_seq_length=size.image_tokens
  )
  processor.save_pretrained(folder)


if __name__ == "__main__":
  make(pathlib.Path(sys.argv[1]), grpo_sizes.SIZES[sys.argv[2]])
