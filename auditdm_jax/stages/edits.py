# SPDX-License-Identifier: Apache-2.0
"""What only the maker of an edited image can measure: that the edit is local, and the sham.

1. The saved image differs from its source in one region, and nowhere else by a single level.
2. The same region of the source, merely encoded and decoded by the image model, is put to all
   models: where that alone changes an answer, the edit explains nothing.
"""

from collections.abc import Sequence

import numpy as np

from auditdm_jax.audit import gates
from auditdm_jax.audit.answer import ModelBank
from auditdm_jax.audit.attempt import Gate
from auditdm_jax.audit.probe import Probe
from auditdm_jax.images import locality
from auditdm_jax.stages.context import Context


def measure(ctx: Context, bank: ModelBank, probes: Sequence[Probe]) -> list[tuple[Gate, ...]]:
  """The gates of each probe; none for those whose image is no edit.

  A sham that the service could not make is no gate: neither passed nor failed.
  """
  measured: list[tuple[Gate, ...]] = [()] * len(probes)
  waiting = {}
  edited = {s.name for s in ctx.settings.rollout.known() if s.makes == "edit"}
  for i, probe in enumerate(probes):
    if probe.strategy not in edited or probe.source_image_id is None:
      continue
    source = ctx.images(probe.source_image_id)
    saved = ctx.images.made.get(probe.image_id)  # As it lies on disk.
    # Of what has been pasted already, the region is found again exactly.
    mask = locality.composite(source, saved)[1]
    measured[i] = gates.edit_locality(source, saved, mask)
    waiting[i] = ctx.client.sham(source, mask, seed=probe.seed)
  shams = {i: image for i, f in waiting.items() if (image := f.result().image) is not None}
  if shams:
    for i, gate in _controls(ctx, bank, probes, shams).items():
      measured[i] = (*measured[i], gate)
  return measured


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
