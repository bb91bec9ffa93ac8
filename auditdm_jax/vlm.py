# SPDX-License-Identifier: Apache-2.0
"""Vision-language models: read from folders, written into them.

vlm = load_vlm("data/scenes/weights/target_easy")
"""

import dataclasses
import os
import pathlib
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from auditdm_jax.core import config as config_lib
from auditdm_jax.core.config import UserError
from auditdm_jax.models import preprocess, weights
from auditdm_jax.models.multimodal import VlmConfig
from auditdm_jax.models.preprocess import Pixels
from auditdm_jax.models.weights import Loaded
from auditdm_jax.text import hf, styles
from auditdm_jax.text import prompts as prompts_lib
from auditdm_jax.text.tokenizer import FILENAMES, Tokenizer
from auditdm_jax.vlm_model import Completion, Prompt, Vlm

__all__ = ["Completion", "Prompt", "Vlm", "describe_vlm", "extras_of", "load_vlm", "save_vlm"]

# Of PaliGemma's own demonstrations and most of its transfer configs; the others do not antialias.
_BIG_VISION = Pixels("big_vision", antialias=True)
# What a native folder's config.json says of prompts, answers and images.
_OWN = ("template", "stop", "pixels", "style")
_EOS = 1  # Of every SentencePiece model of Gemma.


def load_vlm(path: str | os.PathLike, *, mesh: Mesh | None = None, dtype: Any = jnp.float32) -> Vlm:
  """Reads a model: ours, Hugging Face's or big_vision's; see `models.weights`.

  How prompts, answers and images are made is the origin's way (`text.hf`, `models.preprocess`),
  unless the config.json of a native folder says otherwise by "template", "stop", "pixels" or
  "style".

  Args:
    path: the folder, or big_vision's npz; its name becomes the model's.
    mesh: shard the parameters over this mesh, if it has the axes of `models.sharding`, or
      replicate them, and split batches over it.
    dtype: of the parameters and of the computation.

  Raises:
    UserError: it is not a whole model.
  """
  path = pathlib.Path(path)
  loaded = weights.load(path, mesh=mesh, dtype=dtype)
  return _with_ways(path, loaded, mesh=mesh, dtype=dtype)


def describe_vlm(path: str | os.PathLike) -> Vlm:
  """Reads all of a model but its parameters, of which it has none.

  Raises:
    UserError: as `load_vlm`.
  """
  opened = weights.open_model(path)
  bare = weights.Loaded(opened.config, {}, opened.extras, opened.side)
  return _with_ways(pathlib.Path(path), bare, mesh=None, dtype=jnp.float32)


def _with_ways(path: pathlib.Path, loaded: Loaded, *, mesh: Mesh | None, dtype: Any) -> Vlm:
  """Returns a model with how it is asked, as its origin or its config.json says."""
  config, extras = loaded.config, dict(loaded.extras)
  origin = extras["origin"]["format"]
  folder = weights.side_folder(path)
  tokenizer = _tokenizer(folder, config)
  where = f"{folder}/config.json"
  own: dict[str, Any] = {key: extras.pop(key) for key in _OWN if key in extras}
  if origin == "hf":
    own = _hf_ways(folder, config, tokenizer) | own
  elif origin != "native":
    style = styles.style_for(path.resolve().name, paligemma=True, has_turns=False)
    ways = {"template": prompts_lib.PALIGEMMA, "stop": [_EOS], "pixels": _BIG_VISION}
    own = {**ways, "style": style, **own}
  template, stop = own.get("template"), own.get("stop")
  if not isinstance(template, str) or not isinstance(stop, list) or not stop:
    raise UserError(f"{where}: needs a 'template' and a list 'stop' of tokens")
  if origin == "native":
    if tokenizer is None:
      raise UserError(f"{folder}: no tokenizer, none of {', '.join(FILENAMES)}")
    # Now rather than at the first question.
    prompts_lib.render(tokenizer, template, "", config.num_image_tokens)
  return Vlm(
    name=path.resolve().name,
    config=config.with_dtype(jnp.dtype(dtype).name),
    params=loaded.params,
    tokenizer=tokenizer,
    template=template,
    stop_ids=tuple(_stop_id(tokenizer, s) for s in stop),
    extras=extras,
    mesh=mesh,
    pixels=config_lib.build(Pixels, own.get("pixels", {}), name=f"{where}: pixels"),
    side=loaded.side,
    style=styles.find(own.get("style", styles.PLAIN), where=f"{where}: style"),
  )


def save_vlm(path: str | os.PathLike, vlm: Vlm, *, dtype: str = "float32") -> None:
  """Writes a model folder that `load_vlm` reads.

  The tower is written with the model unless `vlm.extras["tower"]` names its folder, relative to
  `path`.
  """
  extras = extras_of(vlm)
  weights.save(path, vlm.config, vlm.params, vlm.tokenizer, extras, dtype=dtype, side=vlm.side)


def extras_of(vlm: Vlm) -> dict[str, Any]:
  """Returns what config.json says of a model besides its architecture: how it is asked."""
  stop = [vlm.tokenizer.token(i) if vlm.tokenizer else i for i in vlm.stop_ids]
  extras = vlm.extras | {"template": vlm.template, "stop": stop}
  if vlm.pixels != Pixels():
    extras["pixels"] = dataclasses.asdict(vlm.pixels)
  if vlm.style != styles.PLAIN:
    extras["style"] = dataclasses.asdict(vlm.style)
  return extras


def _tokenizer(folder: pathlib.Path, config: VlmConfig) -> Tokenizer | None:
  """Reads the tokenizer in a folder, if there is one, as the model wants it."""
  tokenizer = Tokenizer.in_folder(folder)
  if tokenizer is None or config.vision is None:
    return tokenizer
  try:
    return tokenizer.for_model(
      image_id=config.image_token_id,
      rows=config.text.vocab_size,
      locations=config.kind == "paligemma",
    )
  except UserError as e:
    raise UserError(f"{folder}: {e}") from e


def _hf_ways(
  folder: pathlib.Path, config: VlmConfig, tokenizer: Tokenizer | None
) -> dict[str, Any]:
  """Returns "template", "stop", "pixels" and "style" of a Hugging Face folder."""
  paligemma = config.kind == "paligemma"
  template = hf.template(folder, tokenizer, paligemma=paligemma)
  turns = "<start_of_turn>" in template
  ways: dict[str, Any] = {
    "style": styles.style_for(folder.resolve().name, paligemma=paligemma, has_turns=turns),
    "template": template,
    "stop": hf.stop_ids(folder, tokenizer, template=template),
  }
  if config.vision is not None:
    ways["pixels"] = preprocess.read_processor(
      folder,
      size=config.vision.image_size,
      # Of SigLIP's image processor, which PaliGemma uses, and of Gemma 3's.
      resample="bicubic" if paligemma else "bilinear",
    )
  return ways


def _stop_id(tokenizer: Tokenizer | None, stop: str | int) -> int:
  if isinstance(stop, int):
    return stop
  if tokenizer is None:
    raise UserError(f"stop {stop!r} is a token, but there is no tokenizer to say which")
  return tokenizer.id(stop)
