# SPDX-License-Identifier: Apache-2.0
"""What a benchmark is, as data: layouts, prompts by model family, metrics, published numbers."""

from collections.abc import Mapping, Sequence
import dataclasses
import enum
import logging
import os
import pathlib

from auditdm_jax.bench.items import LETTERS, BenchmarkItem, Items
from auditdm_jax.bench.layouts.open import Layout, open_items
from auditdm_jax.core import jsonio
from auditdm_jax.core.config import UserError


class Family(enum.StrEnum):
  """Whom a prompt is for. Chat models are asked as one of the two common harnesses asks them."""

  TRANSFER = "paligemma-transfer"  # Fine-tuned on the task by big_vision's recipe.
  MIX = "paligemma-mix"  # The checkpoints for many tasks.
  LMMS_EVAL = "chat"  # lmms-eval's prompt for instruction-tuned models.
  VLMEVALKIT = "chat-vlmevalkit"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptionStyle:
  """How options are written.

  Attributes:
    each: of {letter} and {text}.
    between: what is between two.
  """

  each: str = "{letter}. {text}"
  between: str = "\n"

  def render(self, options: Sequence[str]) -> str:
    """Returns the options as text; empty ones are left out, and their letters with them."""
    pairs = [(x, text) for x, text in zip(LETTERS, options) if text]
    return self.between.join(self.each.format(letter=x, text=text) for x, text in pairs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricName:
  """A metric of `bench.scorers`, and whose rules it follows."""

  name: str
  variant: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptSpec:
  """How one family is asked and scored.

  Attributes:
    template: of {question}, {options} and {hint}.
    plain: the template of items without options; "" = the same.
    options: how options are written.
    hint: the hint in the template, of {hint}; it is left out if an item has none.
    drop: what is taken out of the question.
    strip: whether blanks around the question go.
    max_tokens: of an answer.
    beam: 1 = greedy.
    antialias: whether the image is antialiased when it is made smaller; None = the model's own way.
    antialias_train: the same for fine-tuning.
    metric: of the answers.
    chooses: whether the answer is a letter; otherwise it is the option's text.
    source: where the prompt is from; "ours" if nothing gives it.
  """

  template: str
  metric: MetricName
  max_tokens: int
  source: str
  plain: str = ""
  options: OptionStyle = OptionStyle()
  hint: str = ""
  drop: str = ""
  strip: bool = False
  beam: int = 1
  antialias: bool | None = None
  antialias_train: bool | None = None
  chooses: bool = False

  def render(self, item: BenchmarkItem) -> str:
    """Returns the prompt of an item."""
    question = item.question.replace(self.drop, "") if self.drop else item.question
    question = question.strip() if self.strip else question
    template = self.template if item.options or not self.plain else self.plain
    return template.format(
      question=question,
      options=self.options.render(item.options),
      hint=self.hint.format(hint=item.hint) if item.hint else "",
    )

  def references(self, item: BenchmarkItem) -> tuple[str, ...]:
    """Returns what an answer is compared with: letters, or texts."""
    return (item.letter,) if self.chooses and item.answer is not None else item.references


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaperRow:
  """What "Differences That Matter" reports (PaliGemma 2 at 448 pixels, or Gemma3-4B).

  Attributes:
    split: ours.
    baseline: the target.
    repaired: with AuditDM.
    sd: of the baseline over five runs; None if it is not reported.
    larger: baselines of larger siblings.
    at_224: the target at 224 pixels.
    note: what to know before comparing.
  """

  split: str
  baseline: float
  repaired: float
  sd: float | None = None
  larger: Mapping[str, float] = dataclasses.field(default_factory=dict)
  at_224: float | None = None
  note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkSpec:
  """One benchmark.

  Attributes:
    name: in lower case.
    title: for tables.
    layouts: how it lies on disk.
    prompts: by family; a family that is not asked has none.
    split: what is reported.
    cluster: what is resampled for intervals: "image_key", or "group" where items count together.
    scale: what a metric in [0, 1] is multiplied by in tables.
    paper: rows to compare with.
    source: where the data set is published.
    licence: as its publisher says.
    sizes: items of a split, as published; () for those that are not known.
    same_images: names of other data sets that share its pictures, for leaks.
  """

  name: str
  title: str
  layouts: tuple[Layout, ...]
  prompts: Mapping[Family, PromptSpec]
  split: str
  source: str
  licence: str
  cluster: str = "image_key"
  scale: float = 100.0
  paper: tuple[PaperRow, ...] = ()
  sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
  same_images: tuple[str, ...] = ()

  @property
  def splits(self) -> tuple[str, ...]:
    """All splits that a layout gives."""
    return tuple(dict.fromkeys(x for layout in self.layouts for x in layout.splits))

  def open(self, path: str | os.PathLike, split: str = "") -> Items:
    """Opens a split at a path, whatever its layout; see `layouts.open.open_items`."""
    split = split or self.split
    items = open_items(
      self.name, self.layouts, path, split, source=self.source, licence=self.licence
    )
    if (want := self.sizes.get(split, len(items))) != len(items):
      logging.warning(
        "%s: %d items, not %d as published; results of a part say so", path, len(items), want
      )
    return items

  def prompt(self, family: Family) -> PromptSpec:
    """Returns how a family is asked.

    Raises:
      UserError: it is not.
    """
    if family not in self.prompts:
      raise UserError(f"{self.name} has no prompt for {family}; it has {', '.join(self.prompts)}")
    return self.prompts[family]


def write_metadata(path: pathlib.Path, items: Items) -> None:
  """Writes where items come from and under what licence, to lie beside what is made of them."""
  jsonio.write_json(path, {"items": len(items), **jsonio.plain(items.provenance)})
