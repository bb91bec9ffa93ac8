# SPDX-License-Identifier: Apache-2.0
"""Whether other programs run the models that `convert` writes as we do, measured on small ones.

COMMAND
  python -m benchmarks.readers --python=/path/to/venv/bin/python
    [--reader=transformers|vllm|llama_cpp|big_vision] [--keep=FOLDER]
  PYTHONPATH=/path/to/big_vision python -m benchmarks.readers --python=python --reader=big_vision

Makes a random PaliGemma 2 and a random Gemma 3, writes them with `convert`'s writers, and asks
another interpreter, in which the reader is installed, for log-probabilities of these rows:

  text    one row without an image
  image   one row with an image
  flat    one row with an image that is half as high as wide, which models squeeze to a square
  batch   three rows of different lengths, each with an image, padded as the reader does it

Prints by model, case and way of asking the largest difference to our log-probabilities, over the
whole vocabulary and all positions from the first that predicts text behind the image (PaliGemma:
behind the prefix). What a reader needs is in the first lines of its file in `benchmarks/reading`.
docs/compatibility.md has the results.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from absl import app, flags
import jax
import numpy as np
from PIL import Image
import rich.console
import rich.table

from auditdm_jax.core import tree
from auditdm_jax.models import export, gemma, multimodal, preprocess, siglip, weights
from auditdm_jax.text.tokenizer import Tokenizer
from auditdm_jax.vlm import Vlm, load_vlm

READERS = ("transformers", "vllm", "llama_cpp", "big_vision")
WORDS = [chr(i) for i in range(ord("a"), ord("z") + 1)] + [f"w{i}" for i in range(82)]
TOKENIZER = Tokenizer.word_level(WORDS)
BLANK = "w0"  # Stands for the blank lines that the processor of the release puts around an image.
SIDE = 16
VISION = siglip.SiglipConfig(64, 2, 96, 2, patch_size=4, image_size=SIDE)
TEXT = gemma.GemmaConfig(
  vocab_size=TOKENIZER.vocab_size,
  width=64,
  depth=6,
  mlp_dim=128,
  num_heads=2,
  num_kv_heads=1,
  head_dim=32,
  query_scale=32**-0.5,
)
# The scaled rotary embedding is that of the released 4B to 27B; softcaps are large here so as to be
# felt. big_vision trains PaliGemma without a cap on its logits, so the config says none.
MODELS = {
  "paligemma2": multimodal.VlmConfig(
    "paligemma",
    dataclasses.replace(TEXT, attn_softcap=50.0),
    VISION,
    image_token_id=TOKENIZER.image_id,
  ),
  "gemma3": multimodal.VlmConfig(
    "gemma3",
    dataclasses.replace(
      TEXT,
      qk_norm=True,
      window=8,
      layer_is_local=(True,) * 5 + (False,),
      rope_base=1e6,
      rope_scale=8.0,
    ),
    VISION,
    image_token_id=TOKENIZER.image_id,
    mm_tokens=4,
  ),
}

_PYTHON = flags.DEFINE_string("python", None, "the other interpreter")
_READER = flags.DEFINE_enum("reader", "transformers", READERS, "what is installed there")
_KEEP = flags.DEFINE_string("keep", None, "a folder to keep the checkpoints and answers in")


@dataclasses.dataclass(frozen=True)
class Row:
  """A row to be read.

  Attributes:
    tokens: its ids, with image slots.
    prefix: tokens that see each other, which PaliGemma was given; 0 for Gemma 3.
    image: which of the images fills the slots; None if there are none.
    first: the first position that is compared.
  """

  tokens: list[int]
  prefix: int
  image: int | None
  first: int


@dataclasses.dataclass(frozen=True)
class Difference:
  """The largest difference of a log-probability, of one model, case and way of asking."""

  model: str
  case: str
  asked: str
  value: float


def main(argv: list[str]) -> None:
  del argv
  if _PYTHON.value is None:
    raise app.UsageError("--python is required")
  with contextlib.ExitStack() as stack:
    folder = _KEEP.value or stack.enter_context(tempfile.TemporaryDirectory())
    version, found = measure(_READER.value, _PYTHON.value, pathlib.Path(folder))
  table = rich.table.Table("model", "case", "asked", "largest difference", title=version)
  for d in found:
    value = f"{d.value:.1e}" if d.value < 0.01 else f"{d.value:.2f}"
    table.add_row(d.model, d.case, d.asked, value)
  rich.console.Console().print(table)


def measure(reader: str, python: str, folder: pathlib.Path) -> tuple[str, list[Difference]]:
  """Returns the reader's version and its differences to us.

  Args:
    reader: one of `READERS`.
    python: the interpreter that has it.
    folder: where checkpoints and answers go.
  """
  version, out = "", []
  for model, config in MODELS.items():
    work = folder / model
    cases, ours = make(config, work)
    script = pathlib.Path(__file__).parent / "reading" / f"with_{reader}.py"
    path = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")} if reader == "big_vision" else {}
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | path
    made = subprocess.run([python, str(script), str(work)], env=env, capture_output=True, text=True)
    if made.returncode:
      raise RuntimeError(f"{script.name} for {model}:\n{made.stdout[-2000:]}{made.stderr[-4000:]}")
    answers = np.load(work / "answers.npz")
    version = str(answers["version"])
    for asked, case in sorted({tuple(k.split("/")[:2]) for k in answers.files if "/" in k}):
      values = []
      for key in (k for k in answers.files if k.startswith(f"{asked}/{case}/")):
        i, start = map(int, key.split("/")[2:])
        values.append(_difference(answers[key], ours[case][i], cases[case][i], start))
      out.append(Difference(model, case, asked, max(values)))
  return version, out


def _difference(theirs: np.ndarray, ours: np.ndarray, row: Row, start: int) -> float:
  """Returns the largest difference of a row.

  Args:
    theirs: f32[P,V], log-probabilities at P positions, or f32[P], those of the tokens that follow.
    ours: f32[T,V], at all positions.
    row: the row.
    start: the first of theirs among our positions.
  """
  if theirs.ndim == 1:
    ours = np.take_along_axis(ours[:-1], np.asarray(row.tokens[1:])[:, None], axis=1)[:, 0]
  skip = max(0, row.first - start)
  ours = ours[start + skip : start + len(theirs)]
  return float(np.abs(theirs[skip:] - ours).max())


def make(
  config: multimodal.VlmConfig, work: pathlib.Path
) -> tuple[dict[str, list[Row]], dict[str, list[np.ndarray]]]:
  """Writes a model in all formats and what is to be asked; returns the cases and our answers."""
  work.mkdir(parents=True)
  params = tree.unflatten(draw(config))
  extras = {"template": "{image}<bos>{text}", "stop": ["<eos>"]}
  weights.save(work / "native", config, params, TOKENIZER, extras)
  opened = weights.open_model(work / "native")
  export.write_hf(work / "hf", opened)
  if config.kind == "paligemma":
    export.write_big_vision(work / "model.npz", opened)
  cases = rows_of(config)
  rng = np.random.default_rng(1)
  images = list(rng.integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8))
  images.append(np.repeat(images[0][: SIDE // 4], 2, axis=0))
  for i, image in enumerate(images):
    Image.fromarray(image).save(work / f"{i}.png")
  pixels = preprocess.preprocess(images, size=SIDE)
  np.savez(work / "pixels.npz", pixels=pixels)
  named = {k: TOKENIZER.id(k) for k in ("<bos>", "<start_of_image>", "<end_of_image>", BLANK)}
  request: dict[str, Any] = {
    "kind": config.kind,
    "config": config.to_dict(),
    "ids": named | {"image": config.image_token_id},
    "slots": config.num_image_tokens,
    "cases": {k: [dataclasses.asdict(row) for row in rows] for k, rows in cases.items()},
  }
  (work / "request.json").write_text(json.dumps(request))
  vlm = load_vlm(work / "native")
  return cases, {k: _ours(vlm, rows, pixels) for k, rows in cases.items()}


def draw(config: multimodal.VlmConfig) -> dict[str, np.ndarray]:
  """Returns random parameters by path, so large that logits are not flat."""
  shapes = jax.eval_shape(lambda key: multimodal.init(config, key), jax.random.key(0))
  rng = np.random.default_rng(0)
  out = {}
  for path, leaf in tree.flatten(shapes).items():
    scale = 0.3 if path.endswith(("scale", "bias")) else 1.3 * leaf.shape[-2] ** -0.5
    scale = 0.5 if "embedding" in path else scale
    out[path] = (scale * rng.standard_normal(leaf.shape)).astype(np.float32)
  return out


def rows_of(config: multimodal.VlmConfig) -> dict[str, list[Row]]:
  """Returns the rows of each case; those of Gemma 3 have an image between words."""
  rng, bos = np.random.default_rng(2), TOKENIZER.id("<bos>")
  slots = [config.image_token_id] * config.num_image_tokens

  def words(n: int) -> list[int]:
    return rng.choice([TOKENIZER.id(w) for w in WORDS[:26]], n).tolist()

  def row(image: int | None, before: int, behind: int) -> Row:
    if config.kind == "paligemma":
      prefix = (slots if image is not None else []) + [bos, *words(before)]
      return Row(prefix + words(behind), len(prefix), image, len(prefix) - 1)
    block = [TOKENIZER.id("<start_of_image>"), *slots, TOKENIZER.id("<end_of_image>")]
    block = [TOKENIZER.id(BLANK), *block, TOKENIZER.id(BLANK)]
    tokens = [bos, *words(before), *(block if image is not None else []), *words(behind)]
    return Row(tokens, 0, image, len(tokens) - behind)

  return {
    "text": [row(None, 6, 9)],
    "image": [row(0, 5, 8)],
    "flat": [row(3, 5, 8)],
    "batch": [row(0, 3, 5), row(1, 9, 12), row(2, 2, 7)],
  }


def _ours(vlm: Vlm, rows: list[Row], pixels: np.ndarray) -> list[np.ndarray]:
  """Returns our log-probabilities of each row, f32[T,V]."""
  longest = max(len(r.tokens) for r in rows)
  tokens, valid = np.zeros((len(rows), longest), np.int32), np.zeros((len(rows), longest), bool)
  ar = np.ones((len(rows), longest), np.int32)
  for i, r in enumerate(rows):
    tokens[i, : len(r.tokens)], valid[i, : len(r.tokens)] = r.tokens, True
    ar[i, : r.prefix] = 0
  images = [r.image for r in rows if r.image is not None]
  logits = vlm.logits(
    pixels[images] if images else None,
    tokens,
    input_mask=valid,
    mask_ar=ar if vlm.config.kind == "paligemma" else None,
  )
  logp = np.asarray(jax.nn.log_softmax(logits))
  return [logp[i, : len(r.tokens)] for i, r in enumerate(rows)]


if __name__ == "__main__":
  sys.path.insert(0, os.getcwd())
  app.run(main)
