# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of the paper, and how a config names one of its own.

One file a benchmark. An outsider's is a `BenchmarkSpec` in a module of its own, named by its import
path, or a section of the config; see `find`.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from ml_collections import ConfigDict

from auditdm_jax.bench.layouts.pooled import Pooled
from auditdm_jax.bench.specs import (
  ai2d,
  chartqa,
  cococap,
  docvqa,
  gqa,
  mmbench,
  mme,
  mmmu,
  mmstar,
  mmt,
  okvqa,
  pope,
  realworldqa,
  refcoco,
  seedbench,
  vqav2,
)
from auditdm_jax.bench.specs.base import (
  BenchmarkSpec,
  Family,
  MetricName,
  OptionStyle,
  PaperRow,
  PromptSpec,
  write_metadata,
)
from auditdm_jax.bench.specs.scenes import GAPS, REST, SUITE, ItemGroups, from_pool
from auditdm_jax.core.config import UserError, build, did_you_mean, load_object

__all__ = [
  "BenchmarkSpec",
  "Family",
  "GAPS",
  "ItemGroups",
  "MetricName",
  "OptionStyle",
  "OwnBenchmark",
  "PaperRow",
  "PromptSpec",
  "REST",
  "SPECS",
  "SUITE",
  "find",
  "from_pool",
  "write_metadata",
]

# In the order of the paper's tables.
SPECS: tuple[BenchmarkSpec, ...] = (
  *(vqav2.SPEC, gqa.SPEC, okvqa.SPEC, ai2d.SPEC, docvqa.SPEC, chartqa.SPEC),
  *(refcoco.SPEC, refcoco.BOXES, cococap.SPEC),
  *(mmbench.SPEC, mmt.SPEC, seedbench.SPEC, mme.SPEC, mmmu.SPEC, mmstar.SPEC),
  *(realworldqa.SPEC, pope.SPEC),
)


@dataclasses.dataclass(frozen=True)
class OwnBenchmark:
  """A benchmark of one's own, as a section of the config.

  Attributes:
    name: for files and tables.
    scorer: import path of a function (prediction, references) -> [0, 1].
    prompt: of {question}, for all models.
    max_tokens: of an answer.
    split: of the data set, which is anything that `config.pool` could name.
    licence: of the data.
    source: where it is from.
  """

  name: str
  scorer: str
  prompt: str = "{question}"
  max_tokens: int = 32
  split: str = "test"
  licence: str = "not stated"
  source: str = "own"

  def spec(self) -> BenchmarkSpec:
    """Returns it as any other benchmark."""
    asked = PromptSpec(
      template=self.prompt,
      metric=MetricName(name=self.scorer, variant="own"),
      max_tokens=self.max_tokens,
      source="own",
    )
    return BenchmarkSpec(
      name=self.name,
      title=self.name,
      layouts=(Pooled(splits={self.split: self.split}),),
      prompts=dict.fromkeys(Family, asked),
      split=self.split,
      source=self.source,
      licence=self.licence,
    )


def find(entry: str | Mapping[str, Any] | ConfigDict, *, where: str) -> BenchmarkSpec:
  """Returns a benchmark that a config names.

  Args:
    entry: one of `SPECS` by name, "module:NAME" of a `BenchmarkSpec`, or the fields of an
      `OwnBenchmark`.
    where: the key of the config, for errors.

  Raises:
    UserError: there is no such benchmark, or the section is wrong.
  """
  if not isinstance(entry, str):
    return build(OwnBenchmark, entry, name=where).spec()
  by_name = {spec.name: spec for spec in (*SPECS, *SUITE)}
  if ":" in entry:
    return load_object(entry, BenchmarkSpec, where=where)
  if entry not in by_name:
    raise UserError(
      f"{where}={entry!r}: no such benchmark{did_you_mean(entry, by_name)}; benchmarks:"
      f" {', '.join(spec.name for spec in SPECS)}; one of your own is written package.module:NAME"
    )
  return by_name[entry]
