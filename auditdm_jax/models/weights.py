# SPDX-License-Identifier: Apache-2.0
"""Models on disk, strict in both directions: our own folders, and what others write and read.

    model/
      config.json         {"format": "auditdm-1", "model": {…VlmConfig}, "template": …, "stop": […],
                           "origin": {"format": "hf", …}, "tower": "../siglip", …}
      model.safetensors   one tensor per parameter, named by its path: llm/layers/attn/q_einsum/w
      tokenizer.json
      SHA256SUMS          of all files but config.json, which people may edit
    siglip/
      config.json         {"format": "auditdm-1", "vision": {…SiglipConfig}}
      model.safetensors   img/… without the head

With "tower", everything under img/ but the projector comes from that folder, so that models can
share one frozen tower. With "weights", the parameters are not in model.safetensors but in the named
npz file or Orbax folder next to config.json.

`load` and `open_model` also take folders of Hugging Face, and npz files and checkpoint folders of
big_vision. A tensor too many, too few or of another shape is an error that names it. "origin" in
the extras says where a model comes from, whichever folder it lies in now: its format, and what it
takes to write it back as it was.
"""

from collections.abc import Mapping
import dataclasses
import functools
import hashlib
import logging
import os
import pathlib
import shutil
import tempfile
import types
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import ml_dtypes
import numpy as np

from auditdm_jax.core import config as config_lib
from auditdm_jax.core import jsonio, runtime, sums, tree
from auditdm_jax.core.config import UserError
from auditdm_jax.models import (
  big_vision,
  hf,
  hf_config,
  leaves,
  multimodal,
  sharding,
  siglip,
  tensor_files,
)
from auditdm_jax.models.leaves import Leaf
from auditdm_jax.models.multimodal import Params, VlmConfig
from auditdm_jax.models.tensor_files import read_safetensors

FORMAT = "auditdm-1"
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
# Files next to the weights that are copied with them: tokenizers, processors, terminators.
SIDE_FILES = (
  "tokenizer.json",
  "tokenizer.model",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "generation_config.json",
  "preprocessor_config.json",
  "processor_config.json",
  "chat_template.json",
  "chat_template.jinja",
  "gemma_tokenizer.model",
)
_ORBAX = "_METADATA"  # What a checkpoint of Orbax has.
_MAX_WRONG = 4  # Parameters that an error names.
_RESERVED = {"format", "model", "weights"}
# Keys of the config that are about computing and not about the model.
COMPUTE = {"dtype": "float32", "remat": False, "unroll": 1}


class Tokenizer(Protocol):
  """What is needed of `text.tokenizer.Tokenizer`."""

  def save(self, path: pathlib.Path) -> None:
    """Writes tokenizer.json, or tokenizer.model, into the folder `path`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Opened:
  """A model on disk, nothing of it read but headers.

  Attributes:
    config: its architecture.
    tree: its parameters by path, all that the architecture has and no other.
    extras: what its config.json says besides format and model; "origin" is always there.
    side: by name, the files next to the weights that belong to it. The content itself stands for
      a JSON file whose content has to change.
  """

  config: VlmConfig
  tree: dict[str, Leaf]
  extras: dict[str, Any]
  side: dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
  """A model on its devices; `config`, `extras` and `side` as in `Opened`."""

  config: VlmConfig
  params: Params
  extras: dict[str, Any]
  side: dict[str, Any]


# -------------------------------------------------------------------------------------- reading


def load(
  path: str | os.PathLike,
  *,
  mesh: Mesh | None = None,
  dtype: Any = None,
  model: VlmConfig | None = None,
  image_size: int | None = None,
) -> Loaded:
  """Reads a model of any origin, each shard straight to its device.

  Args:
    path: see `open_model`.
    mesh: where to: split by `sharding.SHARDING_RULES` over its axes "fsdp" and "tensor", and
      replicated over the others; None is the default device.
    dtype: dtype of the parameters; None keeps the file's.
    model: see `open_model`.
    image_size: see `open_model`.

  Raises:
    UserError: something is missing, torn, or not what the config says.
  """
  opened = open_model(path, model=model, image_size=image_size, dtype=dtype)
  # All processes of a run load it: each reads its share of the files for this.
  check_files(path, share=(runtime.index(), runtime.count()))
  where = None if mesh is None else sharding.shardings(mesh, leaves.abstract(opened.tree))
  placed = leaves.place(opened.tree, where)
  return Loaded(opened.config, tree.unflatten(placed), opened.extras, opened.side)


def open_model(
  path: str | os.PathLike,
  *,
  model: VlmConfig | None = None,
  image_size: int | None = None,
  dtype: Any = None,
) -> Opened:
  """Finds out what `path` is, and opens it.

  Args:
    path: a model folder of this package or of Hugging Face; an npz file of big_vision; a checkpoint
      folder of its trainer, by name, by name without the step, or the folder above; an Orbax
      checkpoint of a tree like ours.
    model: the config of a model that has none on disk (npz, big_vision, Orbax); without it, a
      config.json next to the file, or else what the shapes imply (`big_vision.infer`).
    image_size: another resolution, for which the position embeddings are resampled.
    dtype: dtype of the parameters; None keeps the file's, in which the layers must then agree.

  Raises:
    UserError: as `load`.
  """
  path, dtype = pathlib.Path(path), None if dtype is None else jnp.dtype(dtype)
  found = big_vision.find(path)
  if not path.exists() and found is None:
    raise UserError(f"{path}: no such file or folder")
  # The config.json of big_vision's trainer says how it trained, not what.
  header = _read_header(path) if path.is_dir() and found is None else None
  if header is None:
    opened = _open_bare(path, model, dtype)
  elif model is not None:
    raise UserError(f"{path}/config.json says what the model is; another one cannot be asked for")
  elif "format" in header:
    opened = _open_native(path, header, dtype)
  else:
    opened = _open_hf(path, header, dtype)
  if image_size is not None:
    opened = _resized(opened, image_size)
  _check(opened.config, opened.tree, str(path))
  if dtype is None:
    return opened
  return dataclasses.replace(
    opened, tree={k: leaves.cast(v, dtype) for k, v in opened.tree.items()}
  )


def has_config(path: str | os.PathLike) -> bool:
  """Returns whether a config.json says what the parameters at `path` are, so that none is guessed.

  Those that a trainer has just saved have none.
  """
  path = pathlib.Path(path)
  found = big_vision.find(path)
  if found is None and path.is_dir() and _read_header(path) is not None:
    return True
  return _header_beside(found or path) is not None


def content_hash(path: str | os.PathLike) -> str:
  """Returns 64 hex digits of a model's parameters, whatever file and float they are stored in.

  Parameters are hashed by our names and as bf16, so that a model, its conversion to another format
  and its copy in half precision are one. Names and pixels of a model do not count.

  Raises:
    UserError: as `open_model` and `check_files`.
  """
  digest, opened = hashlib.sha256(), open_model(path, dtype="bfloat16")
  check_files(path)
  for name, leaf in sorted(opened.tree.items()):
    digest.update(f"{name} {leaf.shape}\n".encode())
    for piece in leaf.pieces():
      digest.update(piece.tobytes())
  return digest.hexdigest()


def not_finite(path: str | os.PathLike) -> str:
  """Returns the first parameter of a model with a NaN or an infinity; "" if all are numbers."""
  for name, leaf in sorted(open_model(path, dtype="bfloat16").tree.items()):
    if not all(np.isfinite(piece).all() for piece in leaf.pieces()):
      return name
  return ""


def check_files(path: str | os.PathLike, *, share: tuple[int, int] = (0, 1)) -> None:
  """Reads the files of a model whose folder has sums of them, and those of its tower.

  Args:
    path: see `open_model`.
    share: (i, n): only every n-th file from the i-th on.

  Raises:
    UserError: one of them is not what was written; `open_model` sees sizes and headers only.
  """
  folder = side_folder(path)
  header = _read_header(folder) if folder.is_dir() else None
  tower = (header or {}).get("tower")
  for each in (folder, _tower_folder(folder, tower)) if tower else (folder,):
    if name := sums.wrong(each, share=share):
      is_there = (each / name).exists()
      what = "damaged, or not the file that was written" if is_there else "no such file"
      raise UserError(
        f"{each / name}: {what}, by the SHA-256 in {sums.NAME}: copy or make the model again; if"
        f" the change was meant, remove {each / sums.NAME}"
      )


def load_tower(folder: str | os.PathLike) -> tuple[siglip.SiglipConfig, Params]:
  """Reads the folder of a tower; the parameters are {"img": …} without a head, fp32."""
  check_files(folder)
  vision, flat = _open_tower(pathlib.Path(folder))
  return vision, tree.unflatten({k: v.whole().astype(np.float32) for k, v in flat.items()})


def _open_bare(path: pathlib.Path, model: VlmConfig | None, dtype: Any) -> Opened:
  """Opens parameters that no config.json of theirs describes."""
  found = big_vision.find(path)
  if found is not None:
    flat, format = big_vision.read(found, dtype), "big_vision"
  elif (path / _ORBAX).is_file():
    found, format = path, "orbax"
    flat = big_vision.to_ours(tensor_files.read_orbax(path), dtype)
  elif path.is_dir():
    raise UserError(f"{path}: not a model folder, there is no config.json in it")
  else:
    raise UserError(f"{path}: not an npz file; of a model in a folder, name the folder")
  side = side_files(found.parent)
  header = _header_beside(found)
  if model is None and header is not None:
    config = _config(header, found.parent)
    return Opened(config, big_vision.join(flat), _extras(header), side)
  origin = {"format": format}
  if model is None:
    model, origin["inferred"] = big_vision.infer(flat, str(path))
    logging.info("%s: %s", path, origin["inferred"])
  return Opened(*big_vision.fit(model, flat), {"origin": origin}, side)


def _header_beside(found: pathlib.Path) -> dict[str, Any] | None:
  """Returns the config.json next to a file of parameters, if it is that file's."""
  path = found.parent / "config.json"
  if not path.is_file():
    return None
  header = jsonio.read_json(path)
  ours = isinstance(header, dict) and header.get("format") == FORMAT and "model" in header
  return header if ours and header.get("weights", found.name) == found.name else None


def _open_native(path: pathlib.Path, header: dict[str, Any], dtype: Any) -> Opened:
  if header["format"] != FORMAT:
    raise UserError(
      f"{path}/config.json: format is {header['format']!r}, this program reads {FORMAT!r}"
    )
  if "model" not in header:
    raise UserError(f"{path}/config.json: no 'model'; is this the folder of a tower?")
  config = _config(header, path)
  flat = _native_tree(path, header, dtype)
  if header.get("tower"):
    flat |= _read_tower(_tower_folder(path, header["tower"]), config, flat)
  return Opened(config, dict(sorted(flat.items())), _extras(header), side_files(path))


def _native_tree(path: pathlib.Path, header: Mapping[str, Any], dtype: Any) -> dict[str, Leaf]:
  name = header.get("weights")
  if name is None:
    return read_safetensors(path)
  if not isinstance(name, str) or pathlib.PurePath(name).name != name:
    raise UserError(f"{path}/config.json: weights {name!r} is not a name in the folder")
  if (path / name / _ORBAX).is_file():
    return tensor_files.read_orbax(path / name)
  if big_vision.find(path / name) is None:
    raise UserError(f"{path}/config.json: weights {name!r} is neither an npz file nor of Orbax")
  return big_vision.join(big_vision.read(path / name, dtype))


def _open_hf(path: pathlib.Path, header: dict[str, Any], dtype: Any) -> Opened:
  config = hf_config.read_config(header, where=f"{path}/config.json")
  flat = hf.to_ours(config, read_safetensors(path), where=str(path), dtype=dtype)
  origin = {"format": "hf", "config": header}
  return Opened(config, flat, {"origin": origin}, side_files(path))


def _resized(opened: Opened, image_size: int) -> Opened:
  """Returns the same model for images of another size."""
  config, flat = opened.config, dict(opened.tree)
  if config.vision is None:
    raise UserError("the model has no vision tower: an image size means nothing")
  try:
    vision = dataclasses.replace(config.vision, image_size=image_size)
    config = dataclasses.replace(config, vision=vision)
  except ValueError as e:
    raise UserError(f"image size {image_size}: {e}") from e
  config, flat = big_vision.fit(config, flat)
  side = opened.side | {
    name: _with_size(jsonio.read_json(opened.side[name]), config)
    for name in ("preprocessor_config.json", "processor_config.json")
    if name in opened.side
  }
  return dataclasses.replace(opened, config=config, tree=flat, side=side)


def _with_size(processor: Any, config: VlmConfig) -> Any:
  """Returns a processor's config for the images of `config`."""
  if not isinstance(processor, dict):
    return processor
  made = {k: _with_size(v, config) for k, v in processor.items()}
  if isinstance(made.get("size"), dict) and {"height", "width"} <= made["size"].keys():
    made["size"] = {"height": config.tower.image_size, "width": config.tower.image_size}
  if "image_seq_length" in made:
    made["image_seq_length"] = config.num_image_tokens
  return made


def _read_header(folder: pathlib.Path) -> dict[str, Any] | None:
  """Returns config.json; None if the folder has none."""
  path = folder / "config.json"
  if not path.is_file():
    return None
  header = jsonio.read_json(path)
  if not isinstance(header, dict):
    raise UserError(f"{path}: not the config of a model: format is None")
  return header


def _config(header: Mapping[str, Any], folder: pathlib.Path) -> VlmConfig:
  try:
    return VlmConfig.from_dict(header["model"])
  except UserError as e:
    raise UserError(f"{folder}/config.json: {e}") from e


def _extras(header: Mapping[str, Any]) -> dict[str, Any]:
  return {"origin": {"format": "native"}} | {k: v for k, v in header.items() if k not in _RESERVED}


def side_folder(path: str | os.PathLike) -> pathlib.Path:
  """Returns the folder in which tokenizer and processor of the model `path` are looked for."""
  path = pathlib.Path(path)
  if (path / "config.json").is_file():
    return path
  found = path if (path / _ORBAX).is_file() else big_vision.find(path)
  return path if found is None else found.parent


def side_files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns the tokenizer's and the processor's files of a folder, by name."""
  return {name: folder / name for name in SIDE_FILES if (folder / name).is_file()}


def _of_tower(path: str) -> bool:
  return path.startswith("img/") and not path.startswith("img/head/")


@functools.lru_cache(maxsize=32)
def _expected(config: VlmConfig) -> Mapping[str, jax.ShapeDtypeStruct]:
  """Returns the model's parameters by path; tracing it costs more than reading a small one."""
  return tree.flatten(jax.eval_shape(lambda key: multimodal.init(config, key), jax.random.key(0)))


def _check(config: VlmConfig, flat: Mapping[str, Any], what: str) -> None:
  expected = _expected(config)
  if text := tree.diff(expected, flat):
    lines = [line.strip() for line in text.splitlines()]
    more = f"; and {len(lines) - _MAX_WRONG} more" if len(lines) > _MAX_WRONG else ""
    raise UserError(f"{what} does not fit its config: {'; '.join(lines[:_MAX_WRONG])}{more}")
  for name, leaf in flat.items():
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      raise UserError(f"{what}: {name} is {leaf.dtype}, and parameters are floating point")


def _tower_folder(folder: pathlib.Path, tower: str) -> pathlib.Path:
  """Returns the tower's folder, which must lie next to the model's or below it."""
  root = folder.resolve().parent
  path = (folder.resolve() / tower).resolve()
  if pathlib.Path(tower).is_absolute() or not path.is_relative_to(root):
    raise UserError(f"{folder}/config.json: tower {tower!r} is not a relative path inside {root}")
  return path


def _open_tower(folder: pathlib.Path) -> tuple[siglip.SiglipConfig, dict[str, Leaf]]:
  header = _read_header(folder)
  if header is None:
    raise UserError(f"{folder}: not a model folder, there is no config.json in it")
  if header.get("format") != FORMAT or "vision" not in header:
    raise UserError(f"{folder}/config.json: no 'vision'; is this the folder of a whole model?")
  vision = config_lib.build(
    siglip.SiglipConfig, header["vision"], name=f"{folder}/config.json: vision"
  )
  return vision, read_safetensors(folder)


def _read_tower(
  folder: pathlib.Path, config: VlmConfig, own: Mapping[str, Leaf]
) -> dict[str, Leaf]:
  vision, flat = _open_tower(folder)
  if both := [k for k in own if _of_tower(k)]:
    raise UserError(f"{both[0]} is in the model's folder although the tower is {folder}")
  # Compute settings may differ; the sizes may not, and not all of them show in the shapes.
  sizes = [v and dataclasses.replace(v, **COMPUTE) for v in (vision, config.vision)]
  if sizes[0] != sizes[1]:
    raise UserError(f"the tower {folder} is {sizes[0]}, but the model wants {sizes[1]}")
  return flat


# -------------------------------------------------------------------------------------- writing


def save(
  folder: str | os.PathLike,
  config: VlmConfig,
  params: Params,
  tokenizer: Tokenizer | None,
  extras: Mapping[str, Any],
  *,
  dtype: str = "float32",
  side: Mapping[str, Any] = types.MappingProxyType({}),
) -> None:
  """Writes a model folder; config.json comes last, so that a torn folder does not load.

  Args:
    folder: where; made if missing, written over if there.
    config: the model.
    params: its parameters.
    tokenizer: its tokenizer, if it has one.
    extras: "template", "stop", and what else is to be said in config.json. With "tower", the path
      of the tower's folder from this one, the tower's parameters are left out.
    dtype: dtype of the tensors in the file.
    side: `Loaded.side` of the model it was made from.

  Raises:
    UserError: parameters that are not the model's, or that the dtype cannot hold.
  """
  folder = pathlib.Path(folder)
  if taken := _RESERVED & set(extras):
    raise UserError(f"extras cannot hold {sorted(taken)}: they are written from the model")
  flat = _finite(tree.flatten(params), dtype)
  _check(config, flat, f"parameters for {folder}")
  if extras.get("tower"):
    _tower_folder(folder, extras["tower"])
    flat = {k: v for k, v in flat.items() if not _of_tower(k)}
  _replace_tensors(folder, flat)
  write_side_files(folder, side)
  if tokenizer is not None:
    tokenizer.save(folder)
  write_sums(folder)
  header = {"format": FORMAT, "model": config.to_dict()}
  jsonio.write_json(folder / "config.json", header | dict(extras))


def save_tower(
  folder: str | os.PathLike, vision: siglip.SiglipConfig, params: Params, *, dtype: str = "float32"
) -> None:
  """Writes the folder of a tower that models share; of `params` only img/ but the head is read."""
  folder = pathlib.Path(folder)
  flat = {k: v for k, v in tree.flatten(params).items() if _of_tower(k)}
  _replace_tensors(folder, _finite(flat, dtype))
  write_sums(folder)
  header = {"format": FORMAT, "vision": dataclasses.asdict(vision)}
  jsonio.write_json(folder / "config.json", header)


def write_side_files(folder: pathlib.Path, side: Mapping[str, Any]) -> None:
  """Writes `Opened.side` into a folder, which may be the one they are from."""
  for name, file in side.items():
    if not isinstance(file, pathlib.Path):
      jsonio.write_json(folder / name, file)
    elif file.absolute() != (folder / name).absolute():
      shutil.copyfile(file, folder / name)


def write_sums(folder: pathlib.Path) -> None:
  """Notes what the files of a model are, but for config.json, which people may edit."""
  files = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".npz")]
  side = [folder / name for name in (*SIDE_FILES, tensor_files.INDEX)]
  sums.write(folder, [*files, *side, *(folder / "params").rglob("*")])


def _finite(flat: Mapping[str, Any], dtype: str) -> dict[str, Leaf]:
  """Returns leaves of arrays that reading checks: a model with NaN is not worth a file."""
  if dtype not in DTYPES:
    raise UserError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")

  def checked(name: str, array: Any) -> Leaf:
    leaf = leaves.of_array(array, name)
    want = np.dtype(DTYPES[dtype])

    def read(index: leaves.Index) -> np.ndarray:
      with np.errstate(over="ignore"):  # Looked at in the next line.
        made = leaf.read(index).astype(want)
      if not np.isfinite(made.astype(np.float32)).all():
        raise UserError(f"{name} has values that are not finite in {dtype}")
      return made

    return dataclasses.replace(leaf, dtype=want, read=read)

  return {name: checked(name, array) for name, array in flat.items()}


def _replace_tensors(folder: pathlib.Path, flat: Mapping[str, Leaf]) -> None:
  """Writes a folder's tensors, over others if need be; takes away config.json, which comes last."""
  folder.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as new:
    tensor_files.write_safetensors(pathlib.Path(new), flat)
    (folder / "config.json").unlink(missing_ok=True)
    (folder / sums.NAME).unlink(missing_ok=True)
    for old in (*folder.glob("model*.safetensors"), folder / tensor_files.INDEX):
      old.unlink(missing_ok=True)
    for file in pathlib.Path(new).iterdir():
      file.rename(folder / file.name)
