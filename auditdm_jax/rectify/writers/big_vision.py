# SPDX-License-Identifier: Apache-2.0
"""Writes an export that an unmodified big_vision trains PaliGemma on, and evaluates.

  train.jsonl, val.jsonl   {"id", "image", "prefix", "suffix"}, strings only
  images/                  what `image` names
  model.npz                the model to start from, unless it lies elsewhere
  tokenizer.model          its SentencePiece file, unless it lies elsewhere
  bv_config.py             the config, with the recipe's values

big_vision fails late or silently on bad rows (a missing file kills the run when it is reached, a
long prompt loses its answer), so `check` holds the written folder to every rule before it is put
in place.
"""

from collections.abc import Callable, Mapping
import dataclasses
import json
import math
import os
import pathlib
import shutil
from types import MappingProxyType
from typing import Any, Literal

from PIL import Image

from auditdm_jax.core.config import UserError
from auditdm_jax.models.multimodal import VlmConfig
from auditdm_jax.rectify import export
from auditdm_jax.rectify.export import Exported, ExportRow
from auditdm_jax.rectify.recipes import Recipe
from auditdm_jax.rectify.writers import bv_template
from auditdm_jax.text import styles
from auditdm_jax.text.styles import Style

PREDICTIONS = "val_answers.json"  # Where the evaluator writes, in big_vision's workdir.
MODEL, TOKENIZER = "model.npz", "tokenizer.model"
MAX_TEXT_LEN = 256  # Tokens of a row.

_KEYS = ("id", "image", "prefix", "suffix")
_FORMATS = ("PNG", "JPEG", "BMP", "GIF")  # What tf.io.decode_image reads.
_OVERHEAD = 3  # BOS, the "\n" between prefix and suffix, EOS
# (width, depth, MLP, heads, kv-heads, head_dim) of the Gemmas that big_vision knows by name.
_GEMMAS = MappingProxyType(
  {
    (2048, 18, 16_384, 8, 1, 256): "gemma_2b",
    (2304, 26, 9_216, 8, 4, 256): "gemma2_2b",
    (3584, 42, 14_336, 16, 8, 256): "gemma2_9b",
    (4608, 46, 36_864, 32, 16, 128): "gemma2_27b",
  }
)
_SO400M = (1152, 27, 4304, 16, 14)

Evaluator = Literal["vqa", "chartqa", "storepreds"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transfer:
  """What a transfer of PaliGemma's has besides its recipe's numbers.

  Attributes:
    name: of the recipe.
    style: how the model is asked; a newline ends the prompt.
    antialias: whether training resizes with it.
    antialias_eval: whether evaluation does.
    evaluator: big_vision's, as far as one answer in words is enough for it: "vqa" (exact match and
      ANLS), "chartqa" (relaxed accuracy), or "storepreds", which only writes the answers down.
    to_lower: whether the evaluator compares in lower case.
    beam: 1 = greedy.
    answer_len: tokens of an answer.
  """

  name: str
  style: Style = styles.PALIGEMMA
  antialias: bool = True
  antialias_eval: bool = True
  evaluator: Evaluator = "vqa"
  to_lower: bool = False
  beam: int = 1
  answer_len: int = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartModel:
  """The model that is to be fine-tuned.

  Attributes:
    config: its architecture.
    init: path of an f32 npz on the machine that trains; "" = `write_init` writes it.
    tokenizer: SentencePiece file to copy; or a path on the machine that trains, such as gs://…
    tokensets: what big_vision has to add to it: "loc" and "seg", unless they are in it.
    count_tokens: tokens of a text, without specials.
    write_init: writes the npz.
  """

  config: VlmConfig
  init: str
  tokenizer: str | pathlib.Path
  tokensets: tuple[str, ...]
  count_tokens: Callable[[str], int]
  write_init: Callable[[pathlib.Path], None]


def fitting(exported: Exported, transfer: Transfer, model: StartModel) -> Exported:
  """Returns the export without rows of too many tokens, which big_vision would cut in silence."""

  def problem(row: ExportRow) -> str:
    length = _length(row, transfer, model)
    return f"{length} tokens, at most {MAX_TEXT_LEN}" if length > MAX_TEXT_LEN else ""

  return exported.without(problem, kind="too long")


def write(
  folder: pathlib.Path, exported: Exported, *, recipe: Recipe, transfer: Transfer, model: StartModel
) -> Mapping[str, Any]:
  """Writes the files of the format into a folder, and returns what export.json says of them.

  Raises:
    UserError: a rule of big_vision's reader is broken, or it has no such model.
  """
  if recipe.replay:
    raise UserError(
      f"recipe {transfer.name}: it replays, and an export holds no replay data; --recipe names"
      " another, such as forkme"
    )
  longest = max(_length(row, transfer, model) for row in exported.rows)
  text_len = -(-max(longest, 16) // 16) * 16
  for split in ("train", "val"):
    rows = exported.of(split)
    export.write_jsonl(
      folder / f"{split}.jsonl",
      (
        {
          "id": row.row_id,
          "image": row.image,
          "prefix": transfer.style.put(row.question),
          "suffix": row.label,
        }
        for row in rows
      ),
    )
  export.write_images(folder / "images", exported.rows, exported.load)
  if isinstance(model.tokenizer, pathlib.Path):
    shutil.copyfile(model.tokenizer, folder / TOKENIZER)
  has_val = bool(exported.of("val"))
  text = config_text(recipe, transfer, model, longest=longest, text_len=text_len, has_val=has_val)
  (folder / "bv_config.py").write_text(text, encoding="utf-8")
  check(folder)
  if not model.init:
    model.write_init(folder / MODEL)
  return {"text_len": text_len, "longest": longest}


def _length(row: ExportRow, transfer: Transfer, model: StartModel) -> int:
  prefix = transfer.style.put(row.question)
  return model.count_tokens(prefix) + model.count_tokens(row.label) + _OVERHEAD


# --------------------------------------------------------------------------------------- config


def config_text(
  recipe: Recipe,
  transfer: Transfer,
  model: StartModel,
  *,
  longest: int,
  text_len: int,
  has_val: bool,
) -> str:
  """Returns the text of bv_config.py."""
  beside = isinstance(model.tokenizer, pathlib.Path)
  variant, sizes = _llm(model.config)
  steps = (
    f"c.total_steps = {recipe.steps}"
    if recipe.steps
    else f"c.total_epochs = {float(recipe.epochs)!r}"
  )
  return bv_template.BV_CONFIG.substitute(
    recipe_name=transfer.name,
    model_init=repr(model.init) if model.init else f'os.path.join(HERE, "{MODEL}")',
    tokenizer=f'os.path.join(HERE, "{TOKENIZER}")' if beside else repr(model.tokenizer),
    tokensets=repr(model.tokensets),
    img=repr(_img(model.config)),
    llm=repr({"variant": variant, "vocab_size": rows_of(model.config)}),
    sizes=_sizes_lines(sizes) if sizes else "\n",
    res=model.config.tower.image_size,
    text_len=text_len,
    longest=longest,
    answer_len=transfer.answer_len,
    antialias=transfer.antialias,
    batch_size=recipe.batch_size,
    length_line=steps,
    lr=repr(recipe.lr),
    wd=repr(recipe.wd),
    clip=repr(recipe.clip),
    label_smoothing=repr(recipe.label_smoothing),
    warmup=repr(recipe.warmup),
    schedule_lines=_schedule(recipe),
    llm_dropout=repr(recipe.llm_dropout),
    evals=_evals(transfer) if has_val else "",
  )


def _sizes_lines(sizes: Mapping[str, Any]) -> str:
  lines = "\n".join(f"    {key}={value!r}," for key, value in sizes.items())
  return bv_template.SIZES.substitute(sizes=lines)


def _schedule(recipe: Recipe) -> str:
  """Returns the lines that say which parts are trained, and how fast; None = not trained."""
  parts = ", ".join(f"({x!r}, {'None' if r is None else 'schedule'})" for x, r in recipe.parts)
  rates = [(regex, rate) for regex, rate in recipe.parts if rate is not None]
  mults = f"\n  c.lr_mults = {rates!r}" if any(rate != 1.0 for _, rate in rates) else ""
  return f"c.schedule = [{parts}]{mults}"


def _evals(transfer: Transfer) -> str:
  """Returns the lines of the evaluators; `keep` has no text that they send to the devices."""
  if transfer.evaluator == "storepreds":
    hide, keep = 'drop("suffix")', ("id",)
    more = f'    preds_outfile="{{workdir}}/{PREDICTIONS}",\n'
  else:
    hide = 'copy("suffix", "answer")|copy("id", "question_id")|drop("suffix")'
    keep = ("answer", "question_id")
    more = (
      f'    outfile="{{workdir}}/{PREDICTIONS}",\n'
      f'    out_question_key="id",\n    to_lower={transfer.to_lower},\n'
    )
  beam = f'"beam_size": {transfer.beam}, ' if transfer.beam > 1 else ""
  return bv_template.EVALS.substitute(
    hide=repr(hide),
    keep=repr(keep),
    evaluator=transfer.evaluator,
    pred=repr("beam_decode" if transfer.beam > 1 else "decode"),
    pred_kw=f'{{{beam}"max_decode_len": ANSWER_LEN}}',
    antialias=transfer.antialias_eval,
    more=more,
  )


def _img(config: VlmConfig) -> dict[str, Any]:
  """Returns big_vision's arguments of the tower."""
  v = config.tower
  if (v.width, v.depth, v.mlp_dim, v.num_heads, v.patch_size) == _SO400M:
    return {"variant": "So400m/14"}
  return {
    "width": v.width,
    "depth": v.depth,
    "mlp_dim": v.mlp_dim,
    "num_heads": v.num_heads,
    "patch_size": (v.patch_size, v.patch_size),
  }


def _llm(config: VlmConfig) -> tuple[str, dict[str, Any]]:
  """Returns big_vision's name of the decoder, and its sizes if they are not published ones."""
  t = config.text
  key = (t.width, t.depth, t.mlp_dim, t.num_heads, t.num_kv_heads, t.head_dim)
  if key in _GEMMAS:
    return _GEMMAS[key], {}
  variant = "own"
  by_head = t.query_scale is None or math.isclose(t.query_scale, t.head_dim**-0.5)
  sizes = {
    "variant": variant,
    "width": t.width,
    "depth": t.depth,
    "mlp_dim": t.mlp_dim,
    "num_heads": t.num_heads,
    "num_kv_heads": t.num_kv_heads,
    "head_dim": t.head_dim,
    "norm_eps": 1e-6,
    "query_pre_attn_norm": "rsqrt_head_dim" if by_head else "rsqrt_emb_per_head",
    "vocab_size": rows_of(config),
    "attn_logits_softcap": t.attn_softcap,
    "post_norms": t.post_norms,
    "scan": True,
    "remat_policy": "nothing_saveable",
  }
  return variant, sizes


def rows_of(config: VlmConfig) -> int:
  """Rows of the embedding in big_vision's npz, which has none for the image token."""
  return min(config.text.vocab_size, config.image_token_id)


# ---------------------------------------------------------------------------------------- rules


def check(directory: str | os.PathLike) -> None:
  """Holds a folder's JSONL files and images to the rules of big_vision's reader.

  Raises:
    UserError: names the file, the row and the rule.
  """
  root = pathlib.Path(directory)
  seen: set[str] = set()
  decoded: set[str] = set()
  for split in ("train", "val"):
    path = root / f"{split}.jsonl"
    data = path.read_bytes()
    if split == "train" and not data:
      raise UserError(f"{path.name}: no rows")
    if data.startswith(b"\xef\xbb\xbf"):
      raise UserError(f"{path.name}: starts with a byte order mark")
    lines = data.decode("utf-8").removesuffix("\n").split("\n") if data else []
    for number, line in enumerate(lines, 1):
      problem = _problem(line, root / "images", seen, decoded)
      if problem:
        raise UserError(f"{path.name}:{number}: {problem}")


def _problem(line: str, images: pathlib.Path, seen: set[str], decoded: set[str]) -> str | None:
  """Returns what is wrong with a row, or None."""
  try:
    row = json.loads(line)
  except ValueError:
    return "not JSON (blank lines are not allowed)"
  if not isinstance(row, dict) or set(row) != set(_KEYS):
    return f"every row has exactly the keys {', '.join(_KEYS)}"
  wrong = [key for key in _KEYS if not isinstance(row[key], str)]
  if wrong:
    return f"{wrong[0]} is not a string"
  if not row["suffix"].strip() or not row["prefix"].strip():
    return "an empty prefix or suffix teaches nothing"
  if row["id"] in seen:
    return f"id {row['id']!r} is used twice"
  seen.add(row["id"])
  return None if row["image"] in decoded else _image_problem(row["image"], images, decoded)


def _image_problem(name: str, images: pathlib.Path, decoded: set[str]) -> str | None:
  path = images / name
  if not path.resolve().is_relative_to(images.resolve()) or not path.is_file():
    return f"no image {name!r}"
  try:
    with Image.open(path) as image:
      image.load()
      kind = image.format
  except (OSError, SyntaxError) as e:
    return f"{name} cannot be decoded ({e})"
  decoded.add(name)
  return None if kind in _FORMATS else f"{name} is {kind}; TensorFlow reads {', '.join(_FORMATS)}"
