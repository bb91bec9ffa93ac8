# SPDX-License-Identifier: Apache-2.0
"""What only the maker of an edited image can measure: that the edit is local, and the sham.

1. The saved image differs from its source in one region, and nowhere else by a single level.
2. The same region of the source, merely encoded and decoded by the image model, is put to all
   models: where that alone changes an answer, the edit explains nothing.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from auditdm_jax.audit import gates
from auditdm_jax.audit.answer import ModelBank
from auditdm_jax.audit.attempt import Gate
from auditdm_jax.audit.probe import Probe
from auditdm_jax.images import locality
from auditdm_jax.stages.context import Context


def measure(ctx: Context, bank: ModelBank, probes: Sequence[Probe]) -> list[tuple[Gate, ...]]:
  """The gates of each probe; none for those whose image is no edit.

  A sham that the service could not make is not measured.
  """
  measured: list[tuple[Gate, ...]] = [()] * len(probes)
  waiting = {}
  for i, probe, source_id in _edited(ctx, probes):
    source = ctx.images(source_id)
    saved = ctx.images.made.get(probe.image_id)  # As it lies on disk.
    # Of what has been pasted already, the region is found again exactly.
    mask = locality.composite(source, saved)[1]
    measured[i] = gates.edit_locality(source, saved, mask)
    waiting[i] = ctx.client.sham(source, mask, seed=probe.seed)
  shams = {i: image for i, f in waiting.items() if (image := f.result().image) is not None}
  controls = _controls(ctx, bank, probes, shams) if shams else {}
  for i in waiting:
    failed = Gate.unmeasured("sham_control", "the image service made no sham")
    measured[i] = (*measured[i], controls.get(i, failed))
  return measured


def unmeasured(ctx: Context, probes: Sequence[Probe]) -> list[tuple[Gate, ...]]:
  """The gates of each probe where edits of a whole frame are taken as they are."""
  measured: list[tuple[Gate, ...]] = [()] * len(probes)
  for i, *_ in _edited(ctx, probes):
    why = "images.client.local_edits is off"
    measured[i] = tuple(Gate.unmeasured(name, why) for name in gates.EDITS)
  return measured


def _edited(ctx: Context, probes: Sequence[Probe]) -> Iterator[tuple[int, Probe, str]]:
  """Yields the probes about an edited image, with their places and the ids of their sources."""
  edited = {s.name for s in ctx.settings.rollout.known() if s.makes == "edit"}
  for i, probe in enumerate(probes):
    if probe.strategy in edited and probe.source_image_id is not None:
      yield i, probe, probe.source_image_id


def _controls(
  ctx: Context, bank: ModelBank, probes: Sequence[Probe], shams: dict[int, np.ndarray]
) -> dict[int, Gate]:
  """Answers about the sources against those about the shams."""
  questions = [probes[i].question for i in shams]
  sources = [ctx.images(probes[i].source_image_id or "") for i in shams]
  before = bank.answers(sources, questions)
  after = bank.answers(list(shams.values()), questions)
  return {
    i: gates.sham_control(
      {name: texts[k] for name, texts in before.items()},
      {name: texts[k] for name, texts in after.items()},
      bank.judge,
      question=questions[k],
    )
    for k, i in enumerate(shams)
  }
