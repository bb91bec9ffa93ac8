# SPDX-License-Identifier: Apache-2.0
"""Writes training examples as a folder that big_vision trains PaliGemma 2 on without any change.

  train.jsonl, val.jsonl   {"id", "image", "prefix", "suffix"}, strings only
  images/                  what `image` names
  bv_config.py             the config, with the recipe's values
  meta.jsonl               where each row came from
  stats.json               counts and lengths

big_vision fails late or silently on bad rows (a missing file kills the run when it is reached, a
long prompt loses its answer), so `check` holds the written folder to every rule before it is put
in place.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
import dataclasses
import json
import os
import pathlib
import re
import shutil
import tempfile

from PIL import Image

from auditdm_jax.core import config as config_lib
from auditdm_jax.core import jsonio
from auditdm_jax.rectify import bv_template, curate, recipes
from auditdm_jax.text import styles

_KEYS = ("id", "image", "prefix", "suffix")
_FORMATS = ("PNG", "JPEG", "BMP", "GIF")  # What tf.io.decode_image reads.
_LOCATION = re.compile(r"<(loc\d{4}|seg\d{3})>")
_OVERHEAD = 3  # BOS, the "\n" between prefix and suffix, EOS
_FORMAT = "auditdm-bv-export-1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BigVision:
  """The model that is to be fine-tuned.

  Attributes:
    model_init: path of an f32 npz of the pretrained checkpoint.
    tokenizer: path of gemma_tokenizer.model.
    llm_variant: gemma2_2b, gemma2_9b or gemma2_27b.
    res: 224, 448 or 896.
    max_text_len: rows with more tokens are left out and counted.
  """

  model_init: str
  tokenizer: str = "gs://big_vision/gemma_tokenizer.model"
  llm_variant: str = "gemma2_2b"
  res: int = 224
  max_text_len: int = 128


def export(
  directory: str | os.PathLike,
  train: Sequence[curate.TrainingExample],
  *,
  image_path: Callable[[str], pathlib.Path],
  count_tokens: Callable[[str], int],
  recipe: recipes.Recipe,
  model: BigVision,
  val: Sequence[curate.TrainingExample] = (),
  recipe_name: str = "",
  prefix: Callable[[str], str] = styles.PALIGEMMA.put,
  reserved_images: Collection[str] = (),
  allow_locations: bool = False,
) -> dict[str, int]:
  """Writes the folder and returns its counts.

  Args:
    image_path: image id -> file.
    count_tokens: tokens of a text by PaliGemma's tokenizer, without specials.
    reserved_images: ids of evaluation images; one of them among the examples is an error.
    allow_locations: keep `<loc0123>` and `<seg012>` in texts, where they become single tokens.

  Raises:
    UserError: the examples break a rule that cannot be kept by leaving a row out.
  """
  final = pathlib.Path(directory).absolute()
  if final.exists() and any(final.iterdir()) and not (final / "stats.json").is_file():
    raise config_lib.UserError(f"{final} is not empty and is not an export")
  if recipe.replay:
    raise config_lib.UserError("an export holds no replay data; use a recipe with replay=0")
  leaked = {e.image_id for e in (*train, *val)} & set(reserved_images)
  shared = {e.image_id for e in train} & {e.image_id for e in val}
  if leaked or shared:
    which = "evaluation images among the examples" if leaked else "images in both train and val"
    raise config_lib.UserError(f"{which}, for instance {min(leaked or shared)}")
  final.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix=f".{final.name}-", dir=final.parent) as scratch:
    building = pathlib.Path(scratch) / "new"
    (building / "images").mkdir(parents=True)
    stats = {"rows": 0, "too_long": 0, "longest": 0}
    meta = []
    for split, examples in (("train", train), ("val", val)):
      rows = _rows(examples, split, prefix, count_tokens, model.max_text_len, stats, meta)
      _write_jsonl(building / f"{split}.jsonl", rows)
      for row in rows:
        _copy_image(
          image_path(row["image"].removesuffix(".png")), building / "images" / row["image"]
        )
    _write_jsonl(building / "meta.jsonl", meta)
    stats["text_len"] = -(-max(stats["longest"], 16) // 16) * 16
    text = _config_text(final, recipe, model, stats, recipe_name=recipe_name, has_val=bool(val))
    (building / "bv_config.py").write_text(text, encoding="utf-8")
    jsonio.write_json(building / "stats.json", {"format": _FORMAT, **stats})
    check(building, allow_locations=allow_locations)
    if final.exists():
      final.rename(pathlib.Path(scratch) / "old")
    building.rename(final)
  return stats


def _rows(examples, split, prefix, count_tokens, limit, stats, meta) -> list[dict[str, str]]:
  """Returns the rows that are short enough; `stats` and `meta` are added to."""
  rows = []
  for i, example in enumerate(examples):
    row = {
      "id": f"{split}-{i:06d}",
      "image": f"{example.image_id}.png",
      "prefix": prefix(example.question),
      "suffix": example.label,
    }
    length = count_tokens(row["prefix"]) + count_tokens(row["suffix"]) + _OVERHEAD
    if length > limit:
      stats["too_long"] += 1
      continue
    stats["rows"] += 1
    stats["longest"] = max(stats["longest"], length)
    rows.append(row)
    meta.append({"id": row["id"], "image_id": example.image_id, **example.provenance})
  return rows


def _write_jsonl(path: pathlib.Path, rows: Sequence[Mapping[str, str]]) -> None:
  lines = (json.dumps(row, ensure_ascii=True) + "\n" for row in rows)
  path.write_text("".join(lines), encoding="utf-8")


def _copy_image(source: pathlib.Path, target: pathlib.Path) -> None:
  """Copies a PNG as it is and writes anything else as PNG."""
  if target.exists():
    return
  if not source.is_file():
    raise config_lib.UserError(f"no image file {source}")
  with Image.open(source) as image:
    if image.format == "PNG" and image.mode == "RGB":
      shutil.copyfile(source, target)
    else:
      image.convert("RGB").save(target)


def _config_text(final, recipe, model, stats, *, recipe_name, has_val) -> str:
  tokenizer = f'gemma(tokensets=("loc", "seg"), model="{model.tokenizer}")'
  length = (
    f"c.total_steps = {recipe.steps}" if recipe.steps else f"c.total_epochs = {recipe.epochs!r}"
  )
  schedules = ", ".join(f"({x!r}, {'None' if r is None else 'schedule'})" for x, r in recipe.parts)
  mults = [(regex, rate) for regex, rate in recipe.parts if rate is not None]
  return bv_template.BV_CONFIG.substitute(
    here=str(final).replace("\\", "/"),
    recipe_name=recipe_name or "unnamed",
    model_init=repr(model.model_init),
    tokenizer=repr(tokenizer),
    llm_variant=repr(model.llm_variant),
    res=model.res,
    text_len=stats["text_len"],
    longest=stats["longest"],
    batch_size=recipe.batch_size,
    length_line=length,
    lr=repr(recipe.lr),
    wd=repr(recipe.wd),
    clip=repr(recipe.clip),
    label_smoothing=repr(recipe.label_smoothing),
    warmup=repr(recipe.warmup),
    schedules=f"[{schedules}]",
    lr_mults=repr(mults),
    llm_dropout=repr(recipe.llm_dropout),
    has_val=has_val,
  )


def check(directory: str | os.PathLike, *, allow_locations: bool = False) -> None:
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
      raise config_lib.UserError(f"{path.name}: no rows")
    if data.startswith(b"\xef\xbb\xbf"):
      raise config_lib.UserError(f"{path.name}: starts with a byte order mark")
    lines = data.decode("utf-8").removesuffix("\n").split("\n") if data else []
    for number, line in enumerate(lines, 1):
      problem = _problem(line, root / "images", seen, decoded, allow_locations)
      if problem:
        raise config_lib.UserError(f"{path.name}:{number}: {problem}")


def _problem(
  line: str, images: pathlib.Path, seen: set[str], decoded: set[str], allow_locations: bool
) -> str | None:
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
  for key in ("prefix", "suffix"):
    if not row[key].isprintable():
      return f"{key} has control characters or unpaired surrogates: {row[key][:40]!r}"
    if _LOCATION.search(row[key]) and not allow_locations:
      return f"{key} has location or segment tokens written out: {row[key][:40]!r}"
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
