# SPDX-License-Identifier: Apache-2.0
"""Model folders: config, weights and tokenizer, strict in both directions.

    model/
      config.json         {"format": "auditdm-1", "model": {…VlmConfig}, "template": …, "stop": […],
                           "tower": "../siglip", …}
      model.safetensors   one tensor per parameter, named by its path: llm/layers/attn/q_einsum/w
      tokenizer.json
    siglip/
      config.json         {"format": "auditdm-1", "vision": {…SiglipConfig}}
      model.safetensors   img/… without the head

With "tower", everything under img/ but the projector comes from that folder, so that models can
share one frozen tower. A tensor too many, too few or of another shape is an error that names it.
"""

from collections.abc import Mapping
import dataclasses
import json
import os
import pathlib
from typing import Any, Protocol

import jax
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from auditdm_jax.core import config, store, tree
from auditdm_jax.core.config import UserError
from auditdm_jax.models import multimodal, siglip
from auditdm_jax.models.multimodal import Params, VlmConfig

FORMAT = "auditdm-1"
WEIGHTS = "model.safetensors"
_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


class Tokenizer(Protocol):
  """What is needed of `text.tokenizer.Tokenizer`."""

  def save(self, path: pathlib.Path) -> None:
    """Writes tokenizer.json."""


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
  """What a model folder holds; `extras` is what config.json says beside format and model."""

  cfg: VlmConfig
  params: Params  # numpy, fp32
  extras: dict[str, Any]


def save(
  folder: str | os.PathLike,
  cfg: VlmConfig,
  params: Params,
  tokenizer: Tokenizer,
  extras: Mapping[str, Any],
  *,
  dtype: str = "float32",
) -> None:
  """Writes a model folder; config.json comes last, so that a torn folder does not load.

  Args:
    folder: where; made if missing.
    cfg: the model.
    params: its parameters.
    tokenizer: its tokenizer.
    extras: "template", "stop", and what else is to be said in config.json. With "tower", the path
      of the tower's folder from this one, the tower's parameters are left out.
    dtype: of the tensors in the file.

  Raises:
    UserError: parameters that are not the model's, or that the dtype cannot hold.
  """
  folder = pathlib.Path(folder)
  if taken := {"format", "model"} & set(extras):
    raise UserError(f"extras cannot hold {sorted(taken)}: they are written from the model")
  _check(cfg, params, f"parameters for {folder}")
  flat = tree.flatten(params)
  if extras.get("tower"):
    _tower_folder(folder, extras["tower"])
    flat = {k: v for k, v in flat.items() if not _of_tower(k)}
  folder.mkdir(parents=True, exist_ok=True)
  _write_tensors(folder / WEIGHTS, flat, dtype)
  tokenizer.save(folder / "tokenizer.json")
  header = {"format": FORMAT, "model": cfg.to_dict()}
  store.write_json(folder / "config.json", header | dict(extras))


def save_tower(
  folder: str | os.PathLike, vision: siglip.SiglipConfig, params: Params, *, dtype: str = "float32"
) -> None:
  """Writes the folder of a tower that models share; of `params` only img/ but the head is read."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  flat = {k: v for k, v in tree.flatten(params).items() if _of_tower(k)}
  _write_tensors(folder / WEIGHTS, flat, dtype)
  store.write_json(folder / "config.json", {"format": FORMAT, "vision": dataclasses.asdict(vision)})


def load(folder: str | os.PathLike) -> Loaded:
  """Reads a model folder.

  Raises:
    UserError: something is missing, torn, or not what the config says; one line or a list of
      parameter paths.
  """
  folder = pathlib.Path(folder)
  header = _read_header(folder)
  if "model" not in header:
    raise UserError(f"{folder}/config.json: no 'model'; is this the folder of a tower?")
  try:
    cfg = VlmConfig.from_dict(header["model"])
  except UserError as e:
    raise UserError(f"{folder}/config.json: {e}") from e
  flat = _read_tensors(folder / WEIGHTS)
  if header.get("tower"):
    flat |= _read_tower(_tower_folder(folder, header["tower"]), cfg, flat)
  params = tree.unflatten(flat)
  _check(cfg, params, str(folder / WEIGHTS))
  extras = {k: v for k, v in header.items() if k not in ("format", "model")}
  return Loaded(cfg, params, extras)


def load_tower(folder: str | os.PathLike) -> tuple[siglip.SiglipConfig, Params]:
  """Reads the folder of a tower; the parameters are {"img": …} without a head, fp32."""
  folder = pathlib.Path(folder)
  header = _read_header(folder)
  if "vision" not in header:
    raise UserError(f"{folder}/config.json: no 'vision'; is this the folder of a whole model?")
  vision = config.build(siglip.SiglipConfig, header["vision"], name=f"{folder}/config.json: vision")
  return vision, tree.unflatten(_read_tensors(folder / WEIGHTS))


def cast(params: Params, dtype: Any) -> Params:
  """Returns the parameters in another dtype."""
  return jax.tree.map(lambda x: x.astype(dtype), params)


def _of_tower(path: str) -> bool:
  return path.startswith("img/") and not path.startswith("img/head/")


def _check(cfg: VlmConfig, params: Params, what: str) -> None:
  expected = jax.eval_shape(lambda key: multimodal.init(cfg, key), jax.random.key(0))
  if text := tree.diff(expected, params):
    raise UserError(f"{what} does not fit the model in its config:\n{text}")


def _tower_folder(folder: pathlib.Path, tower: str) -> pathlib.Path:
  """Returns the tower's folder, which must lie beside the model's or below it."""
  root = folder.resolve().parent
  path = (folder.resolve() / tower).resolve()
  if pathlib.Path(tower).is_absolute() or not path.is_relative_to(root):
    raise UserError(f"{folder}/config.json: tower {tower!r} is not a relative path inside {root}")
  return path


def _read_tower(
  folder: pathlib.Path, cfg: VlmConfig, own: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  vision, params = load_tower(folder)
  if both := [k for k in own if _of_tower(k)]:
    raise UserError(f"{both[0]} is in the model's folder although the tower is {folder}")
  # Compute settings may differ; the sizes may not, and not all of them show in the shapes.
  sizes = [
    (dataclasses.replace(v, dtype="float32", remat=False, unroll=1) if v else None)
    for v in (vision, cfg.vision)
  ]
  if sizes[0] != sizes[1]:
    raise UserError(f"the tower {folder} is {sizes[0]}, but the model wants {sizes[1]}")
  return tree.flatten(params)


def _read_header(folder: pathlib.Path) -> dict[str, Any]:
  path = folder / "config.json"
  if not path.is_file():
    raise UserError(f"{folder}: not a model folder, there is no config.json in it")
  try:
    header = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as e:
    raise UserError(f"{path}: not JSON: {e}") from e
  if not isinstance(header, dict) or header.get("format") != FORMAT:
    found = header.get("format") if isinstance(header, dict) else None
    raise UserError(f"{path}: format is {found!r}, this program reads {FORMAT!r}")
  return header


def _write_tensors(path: pathlib.Path, flat: Mapping[str, Any], dtype: str) -> None:
  if dtype not in _DTYPES:
    raise UserError(f"dtype {dtype!r} is not one of {', '.join(_DTYPES)}")
  tensors = {}
  for name, value in flat.items():
    with np.errstate(over="ignore"):  # Looked at in the next line.
      tensor = np.ascontiguousarray(np.asarray(value).astype(_DTYPES[dtype]))
    if not np.isfinite(tensor.astype(np.float32)).all():
      raise UserError(f"{path}: {name} has values that are not finite in {dtype}")
    tensors[name] = tensor
  store.write_bytes(path, safetensors.numpy.save(tensors))


def _read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  if not path.is_file():
    raise UserError(f"{path}: no such file")
  try:
    flat = safetensors.numpy.load_file(path)
  except (safetensors.SafetensorError, ValueError, KeyError) as e:
    raise UserError(f"{path}: not a whole safetensors file: {e}") from e
  return {k: flat[k].astype(np.float32) for k in sorted(flat)}
