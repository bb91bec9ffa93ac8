# SPDX-License-Identifier: Apache-2.0
"""From a run to an export: its examples, the evaluation data they must not repeat, its target."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import pathlib
from types import MappingProxyType
from typing import Any

import numpy as np
import sentencepiece

from auditdm_jax.audit import leaks
from auditdm_jax.audit.leaks import LeakIndex
from auditdm_jax.bench import specs
from auditdm_jax.bench.specs import Family, PromptSpec
from auditdm_jax.core.config import UserError
from auditdm_jax.core.pool import NoSplit
from auditdm_jax.models import export as model_export
from auditdm_jax.models import weights
from auditdm_jax.rectify import export, recipes
from auditdm_jax.rectify.export import Exported, Firewall, Sourced
from auditdm_jax.rectify.recipes import Recipe
from auditdm_jax.rectify.writers import big_vision, chat, tfds
from auditdm_jax.rectify.writers.big_vision import StartModel, Transfer
from auditdm_jax.stages import packing
from auditdm_jax.stages.context import Context
from auditdm_jax.stages.examples import from_failures
from auditdm_jax.stages.pools import InMemoryPool
from auditdm_jax.text import styles
from auditdm_jax.text.styles import Style
from auditdm_jax.vlm import Vlm, describe_vlm

_GEMMA_TOKENIZER = "gs://big_vision/gemma_tokenizer.model"
_PUBLISHED_ROWS = 257_152
_LOCATIONS = 1024 + 128  # Tokens that big_vision adds to a SentencePiece file.
_SENTENCEPIECE = ("gemma_tokenizer.model", "tokenizer.model")
# big_vision's evaluators by the metric of a transfer, and whether they compare in lower case. The
# others want more than an answer in words: masks, or captions of several people.
_EVALUATORS: Mapping[str, tuple[big_vision.Evaluator, bool]] = MappingProxyType(
  {
    "vqa_accuracy": ("vqa", False),
    "okvqa_accuracy": ("vqa", False),
    "exact_match": ("vqa", False),
    "anls": ("vqa", True),
    "relaxed_accuracy": ("chartqa", True),
  }
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """What the flags of `export` say.

  Attributes:
    to: the format, of `WRITERS`.
    recipe: name of a recipe; "" = the config's.
    val_share: share of the source images for validation.
    leaks: files of benchmark indices, in addition to the config's.
    licence: of images and questions.
    model_init: npz that big_vision starts from; "" = the target is written.
    tokenizer: SentencePiece file; "" = the target's.
  """

  to: str
  recipe: str = ""
  val_share: float = 0.1
  leaks: tuple[str, ...] = ()
  licence: str = ""
  model_init: str = ""
  tokenizer: str = ""


def folder_of(ctx: Context, to: str) -> pathlib.Path:
  """Returns where a run's exports are by default."""
  return ctx.folder.path / "export" / to


def run(ctx: Context, output: pathlib.Path, options: Options) -> tuple[bool, Exported]:
  """Exports a run; returns whether anything was written, and what the folder holds.

  Raises:
    UserError: there is nothing to export, or the format cannot take it.
  """
  examples = sourced(ctx)
  if not examples:
    raise UserError(f"{ctx.folder.path}: no failure was verified, so there is nothing to export")
  exported = export.collect(
    examples,
    load=lambda image_id: _image(ctx, image_id),
    firewall=firewall(ctx, options.leaks),
    val_share=options.val_share,
    seed=ctx.settings.seed,
    allow_locations=recipe_of(ctx, options.recipe).name.startswith("refcoco"),
  )
  return WRITERS[options.to](ctx, output, options, exported)


def _image(ctx: Context, image_id: str) -> np.ndarray:
  """Returns an image of the run.

  Raises:
    UserError: it is not there.
  """
  try:
    return ctx.images(image_id)
  except KeyError as e:
    raise UserError(f"{e.args[0]}, but a verified failure is about it; is the run whole?") from e


def sourced(ctx: Context) -> list[Sourced]:
  """Returns the run's examples with the images that theirs go back to."""
  examples = from_failures(ctx)
  wanted = {e.provenance.get("probe_id") for e in examples}
  probes = {f.probe.probe_id: f.probe for f in ctx.folder.failures() if f.probe.probe_id in wanted}
  found = []
  for example in examples:
    probe = probes.get(example.provenance.get("probe_id", ""))
    found.append(
      Sourced(
        example=example,
        source_image=probe.origin_id if probe else example.image_id,
        source=probe.source if probe else "",
      )
    )
  return found


# ------------------------------------------------------------------------------------- firewall


@dataclasses.dataclass(frozen=True)
class _PoolImage:
  """An image of a pool, for `leaks.build`."""

  pool: InMemoryPool
  place: int

  item_id = ""
  question = ""

  @property
  def image_key(self) -> str:
    return self.pool.image_id(self.place)

  @property
  def pictures(self) -> Sequence[int]:
    return (self.place,)

  def image(self, k: int) -> np.ndarray:
    del k
    return self.pool.image(self.place)


def firewall(ctx: Context, files: Sequence[str]) -> Firewall:
  """Returns the evaluation data of a run: benchmarks, and held-out and fresh images if any."""
  indices: list[LeakIndex] = [leaks.load(f) for f in (*ctx.settings.benchmark.leaks, *files)]
  reserved: set[str] = set()
  for role in ("heldout", "fresh"):
    try:
      pool = ctx.pool(role)
    except NoSplit:
      continue
    images = [_PoolImage(pool, i) for i in range(len(pool))]
    indices.append(leaks.build(images, source=f"the run's {role} images"))
    reserved |= {image.image_key for image in images}
  return Firewall(reserved=frozenset(reserved), index=leaks.joined(indices))


# -------------------------------------------------------------------------------------- formats


def _header(ctx: Context, options: Options, **more: Any) -> dict[str, Any]:
  """Returns what decides an export besides its rows."""
  run = packing.header_of(ctx)
  return {
    "to": options.to,
    "licence": options.licence,
    "target": run.target,
    "references": run.references,
    "judge": run.judge,
    "val_share": options.val_share,
    **more,
  }


def _facts(ctx: Context) -> dict[str, Any]:
  """Returns when and how it was made, which decides nothing."""
  run = packing.header_of(ctx)
  return {"code": run.code, "command": run.command, "created": run.created}


def target_style(ctx: Context) -> Style:
  """Returns how the run asks its target, without loading its weights."""
  if ctx.models.target_is_remote:
    return ctx.remotes.open(ctx.settings.models.target).style
  target = describe_vlm(ctx.settings.models.target)
  return ctx.settings.bank.style_of(target.name, target.style)


def _to_chat(write: Callable[..., Mapping[str, Any]]) -> Callable[..., tuple[bool, Exported]]:
  def to(
    ctx: Context, output: pathlib.Path, options: Options, exported: Exported
  ) -> tuple[bool, Exported]:
    style = target_style(ctx)
    header = _header(ctx, options, style=style)

    def fill(folder: pathlib.Path) -> Mapping[str, Any]:
      return {**write(folder, exported, prompt=style.put), **_facts(ctx)}

    return export.write(output, exported, fill, header=header), exported

  return to


def _to_tfds(
  ctx: Context, output: pathlib.Path, options: Options, exported: Exported
) -> tuple[bool, Exported]:
  def fill(folder: pathlib.Path) -> Mapping[str, Any]:
    return {**tfds.write(folder, exported), **_facts(ctx)}

  return export.write(output, exported, fill, header=_header(ctx, options)), exported


def _to_big_vision(
  ctx: Context, output: pathlib.Path, options: Options, exported: Exported
) -> tuple[bool, Exported]:
  if ctx.models.target_is_remote:
    raise UserError(
      f"config.models.target: {ctx.settings.models.target} is an endpoint; big_vision needs the"
      " folder of its weights"
    )
  target = describe_vlm(ctx.settings.models.target)
  recipe = recipe_of(ctx, options.recipe)
  transfer = transfer_of(recipe, ctx.settings.bank.style_of(target.name, target.style))
  model = _start(ctx, target, options)
  exported = big_vision.fitting(exported, transfer, model)
  header = _header(
    ctx,
    options,
    recipe=recipe,
    transfer=transfer,
    model_init=options.model_init,
    tokenizer=options.tokenizer,
  )

  def fill(folder: pathlib.Path) -> Mapping[str, Any]:
    facts = big_vision.write(folder, exported, recipe=recipe, transfer=transfer, model=model)
    return {**facts, **_facts(ctx)}

  return export.write(output, exported, fill, header=header), exported


Writer = Callable[[Context, pathlib.Path, Options, Exported], tuple[bool, Exported]]
WRITERS: Mapping[str, Writer] = MappingProxyType(
  {
    "big_vision": _to_big_vision,
    "trl": _to_chat(chat.write_trl),
    "tfds": _to_tfds,
    "llama-factory": _to_chat(chat.write_llama_factory),
  }
)


# ------------------------------------------------------------------------------------ big_vision


def recipe_of(ctx: Context, name: str) -> Recipe:
  """Returns a recipe by name; that of the config for ""."""
  return recipes.get(name, where="--recipe") if name else ctx.settings.rectify.recipe


def prompt_of(name: str) -> PromptSpec | None:
  """Returns how a transfer is asked; None if there is no such benchmark."""
  base = name.partition("-")[0]
  if base not in {spec.name for spec in specs.SPECS}:
    return None
  return specs.find(base, where="recipe").prompts.get(Family.TRANSFER)


def style_of(template: str, own: Style) -> Style:
  """Returns how the target is asked after training: as a transfer's template, if it asks questions.

  Captions ask nothing, and a multiple choice without options is a question as any other.
  """
  before, mark, after = template.partition("{question}")
  if not mark or "{" in before + after:
    return own
  same = [s for s in (styles.BARE, styles.PALIGEMMA) if (s.prefix, s.suffix) == (before, after)]
  return same[0] if same else Style("transfer", prefix=before, suffix=after)


def transfer_of(recipe: Recipe, own: Style) -> Transfer:
  """Returns what a recipe's transfer has besides its numbers.

  Args:
    recipe: of the transfer, or one's own.
    own: how the target is asked; it is asked so where no transfer says otherwise.
  """
  name, prompt, antialias = recipe.name or "own", prompt_of(recipe.name), recipe.format.antialias
  if prompt is None:
    return Transfer(name=name, style=own, antialias=antialias, antialias_eval=antialias)
  evaluator, to_lower = _EVALUATORS.get(prompt.metric.name, ("storepreds", False))
  return Transfer(
    name=name,
    style=style_of(recipe.format.prompt, own),
    antialias=antialias,
    antialias_eval=antialias if prompt.antialias is None else prompt.antialias,
    evaluator=evaluator,
    to_lower=to_lower,
    beam=prompt.beam,
    answer_len=prompt.max_tokens,
  )


def _start(ctx: Context, target: Vlm, options: Options) -> StartModel:
  """Returns the target as big_vision starts from it.

  Raises:
    UserError: big_vision has no such model, or there is no SentencePiece file.
  """
  path, tokenizer = ctx.settings.models.target, target.tokenizer
  if target.config.kind != "paligemma":
    raise UserError(
      f"{path}: big_vision trains PaliGemma, and this is a {target.config.kind}; --to=trl and"
      " --to=llama-factory take any model"
    )
  if tokenizer is None:
    raise UserError(f"{path}: no tokenizer, so that the length of rows is unknown")
  encode = tokenizer.encode

  def write_init(file: pathlib.Path) -> None:
    weights.check_files(path)
    model_export.write_big_vision(file, weights.open_model(path, dtype=np.float32))

  file, tokensets = _sentencepiece(path, target, options.tokenizer)
  return StartModel(
    config=target.config,
    init=options.model_init,
    tokenizer=file,
    tokensets=tokensets,
    count_tokens=lambda text: len(encode(text)),
    write_init=write_init,
  )


def _sentencepiece(
  path: str, target: Vlm, given: str
) -> tuple[str | pathlib.Path, tuple[str, ...]]:
  """Returns the SentencePiece file, and the sets of tokens that big_vision must add to it."""
  rows = big_vision.rows_of(target.config)
  beside = weights.side_folder(path)
  known = [beside / name for name in _SENTENCEPIECE if (beside / name).is_file()]
  if given and not pathlib.Path(given).is_file():
    return given, ("loc", "seg")  # On the machine that trains.
  if not given and not known:
    if rows == _PUBLISHED_ROWS:
      return _GEMMA_TOKENIZER, ("loc", "seg")
    raise UserError(
      f"{path}: big_vision needs a SentencePiece file, and there is none of"
      f" {', '.join(_SENTENCEPIECE)} beside the target; --tokenizer names one"
    )
  file = pathlib.Path(given) if given else known[0]
  try:
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(file)).get_piece_size()
  except (OSError, RuntimeError) as e:
    raise UserError(f"{file}: not a SentencePiece file") from e
  if rows not in (pieces, pieces + _LOCATIONS):
    raise UserError(
      f"{file}: {pieces:,} pieces do not go with the target's {rows:,} rows, with {_LOCATIONS:,}"
      " locations and shapes or without"
    )
  return file, ("loc", "seg") if rows > pieces else ()
