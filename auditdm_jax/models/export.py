# SPDX-License-Identifier: Apache-2.0
"""Writes an opened model for others: transformers, big_vision, Orbax, or in our own format.

Tensors go from file to file piece by piece and keep their dtype. What is written appears under its
name when it is whole, and not at all if anything fails.
"""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import logging
import os
import pathlib
import shutil
from typing import Any

from auditdm_jax.core import config as config_lib
from auditdm_jax.core import jsonio
from auditdm_jax.core.config import UserError
from auditdm_jax.models import big_vision, hf, hf_config, preprocess, tensor_files
from auditdm_jax.models.leaves import Leaf
from auditdm_jax.models.multimodal import VlmConfig
from auditdm_jax.models.preprocess import Pixels
from auditdm_jax.models.tensor_files import Tick, no_progress
from auditdm_jax.models.weights import COMPUTE, FORMAT, Opened, write_side_files, write_sums


def write_native(path: pathlib.Path, opened: Opened, *, tick: Tick = no_progress) -> None:
  """Writes a model folder of this package. Nothing is there if it fails."""
  with _new_folder(path) as folder:
    tensor_files.write_safetensors(folder, opened.tree, tick=tick)
    _write_rest(folder, opened)


def write_orbax(path: pathlib.Path, opened: Opened, *, tick: Tick = no_progress) -> None:
  """Writes a model folder whose parameters are an Orbax checkpoint, params/."""
  with _new_folder(path) as folder:
    (folder / "params").mkdir()
    tensor_files.write_orbax(folder / "params", opened.tree, tick=tick)
    _write_rest(folder, opened, weights="params")


def write_big_vision(path: pathlib.Path, opened: Opened, *, tick: Tick = no_progress) -> None:
  """Writes an npz file for big_vision: by itself if `path` ends in .npz, else in a model folder.

  Raises:
    UserError: big_vision has no such model.
  """
  tensors = big_vision.from_ours(opened.config, opened.tree)
  if path.suffix == ".npz":
    with _new(path) as file:
      tensor_files.write_npz(file, tensors, tick=tick)
    return
  with _new_folder(path) as folder:
    tensor_files.write_npz(folder / "model.npz", tensors, tick=tick)
    _write_rest(folder, opened, weights="model.npz")


def write_hf(path: pathlib.Path, opened: Opened, *, tick: Tick = no_progress) -> None:
  """Writes a folder for transformers, vLLM and what else reads a released checkpoint.

  Tensors are named as in the released ones. What came from transformers has its config.json again.
  If transformers 5 wrote it, it also says in the words of older readers what they look for.
  """
  config, flat = opened.config, dict(opened.tree)
  origin, made = opened.extras["origin"], None
  # What came from Hugging Face without such a row has none again.
  if config.image_token_id >= config.text.vocab_size and not _is_still(origin, config):
    made = config.text.vocab_size
    config, flat = big_vision.with_image_token(config, flat)
  if _is_still(origin, config):
    header = hf_config.with_older_keys(origin["config"], config)
  else:
    header = hf_config.write_config(config)
  tensors = hf.from_ours(config, flat)
  with _new_folder(path) as folder:
    tensor_files.write_safetensors(folder, tensors, tick=tick)
    write_side_files(folder, opened.side)
    if config.vision and not {"processor_config.json", "preprocessor_config.json"} & set(
      opened.side
    ):
      pixels = config_lib.build(Pixels, opened.extras.get("pixels", {}), name="pixels")
      settings = preprocess.write_processor(
        pixels, kind=config.kind, size=config.vision.image_size, tokens=config.num_image_tokens
      )
      jsonio.write_json(folder / "preprocessor_config.json", settings)
    write_sums(folder)
    jsonio.write_json(folder / "config.json", _with_dtype(header, tensors))
  if made is not None:
    logging.warning(
      "%s: rows %d to %d of the embedding are not in the input: each is the mean of the others",
      *(path.name, made, config.text.vocab_size - 1),
    )
  _warn_of_readers(path.name, config)


def _warn_of_readers(name: str, config: VlmConfig) -> None:
  """Says which usual reader of such a folder would run another model; docs/compatibility.md."""
  if config.kind == "paligemma":
    logging.warning(
      "%s: vLLM runs a PaliGemma's prompt causally, which is not the model as trained; "
      "transformers and big_vision run it as trained",
      name,
    )
  elif config.text.local_rope_scale != 1 and any(config.text.layer_is_local):
    logging.warning(
      "%s: transformers before 5 does not scale the rotary embedding of layers with a window, "
      "which this model does: read it with transformers 5",
      name,
    )


def _with_dtype(header: Any, tensors: Mapping[str, Leaf]) -> Any:
  """Returns a config.json of transformers that says the dtype that most of the tensors have.

  By default transformers loads a model in the dtype that its config says.
  """
  if not isinstance(header, dict):
    return header
  sizes: dict[str, int] = {}
  for leaf in tensors.values():
    sizes[leaf.dtype.name] = sizes.get(leaf.dtype.name, 0) + leaf.nbytes
  most = max(sizes, key=lambda name: sizes[name])
  return {
    k: most if k in ("dtype", "torch_dtype") and isinstance(v, str) else _with_dtype(v, tensors)
    for k, v in header.items()
  }


def _is_still(origin: Mapping[str, Any], config: VlmConfig) -> bool:
  """Returns whether the model came from transformers and its config.json still describes it."""

  def model(config: VlmConfig) -> VlmConfig:
    vision = config.vision and dataclasses.replace(config.vision, **COMPUTE)
    return dataclasses.replace(
      config, text=dataclasses.replace(config.text, **COMPUTE), vision=vision
    )

  if origin["format"] != "hf":
    return False
  return model(hf_config.read_config(origin["config"], where="origin")) == model(config)


def _write_rest(folder: pathlib.Path, opened: Opened, **more: Any) -> None:
  write_side_files(folder, opened.side)
  write_sums(folder)
  header = {"format": FORMAT, "model": opened.config.to_dict(), **more}
  # The tower is written with the model.
  extras = {k: v for k, v in opened.extras.items() if k != "tower"}
  jsonio.write_json(folder / "config.json", header | extras)


@contextlib.contextmanager
def _new(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Gives a path to write to, which becomes `path` if that succeeds and is removed if not.

  Raises:
    UserError: there is something at `path`, or the disk does not take it.
  """
  if path.exists():
    raise UserError(f"{path} is there already, and nothing is written over")
  path = path.absolute()
  tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    yield tmp
    tmp.rename(path)
  except OSError as e:
    raise UserError(f"{path} could not be written: {e}") from e
  finally:
    with contextlib.suppress(OSError):  # What went wrong above is what has to be said.
      if tmp.is_dir():
        shutil.rmtree(tmp)
      tmp.unlink(missing_ok=True)


@contextlib.contextmanager
def _new_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
  with _new(path) as tmp:
    tmp.mkdir()
    yield tmp
