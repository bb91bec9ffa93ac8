# SPDX-License-Identifier: Apache-2.0
"""Edits are measured on the saved file, and an answer that flips on the sham says nothing."""

import concurrent.futures
import types

import numpy as np
from PIL import Image
import pytest

from auditdm_jax.audit.judge import Judge
from auditdm_jax.audit.probe import Probe
from auditdm_jax.core.config import UserError
from auditdm_jax.core.image_store import Images
from auditdm_jax.images import locality
from auditdm_jax.rl.draws import RolloutConfig
from auditdm_jax.stages import edits

SOURCE = np.full((64, 64, 3), 120, np.uint8)


class Bank:
  """Models that see red where there is some, and are put off by a grey of 119."""

  judge = Judge()

  def answers(self, images, questions):
    assert len(images) == len(questions)
    red = ["yes" if (image == (250, 10, 10)).all(-1).any() else "no" for image in images]
    shy = ["blur" if (image == 119).any() else "sharp" for image in images]
    return {"target": shy, "reference": red}


class Client:
  """Encodes and decodes with a change of `levels`; None = it cannot."""

  def __init__(self, levels):
    self.levels, self.masks = levels, []

  def sham(self, image, mask, *, seed):
    self.masks.append(mask)
    made = (
      None
      if self.levels is None
      else locality.paste(image, image.astype(np.int16) + self.levels, mask)
    )
    future = concurrent.futures.Future()
    future.set_result(types.SimpleNamespace(image=None if made is None else made.astype(np.uint8)))
    return future


def _context(tmp_path, client):
  made = Images(tmp_path)
  known = {made.id_of(SOURCE): SOURCE}

  settings = types.SimpleNamespace(rollout=RolloutConfig())
  return types.SimpleNamespace(images=_Source(known, made), client=client, settings=settings)


class _Source(dict):
  def __init__(self, known, made):
    super().__init__(known)
    self.made = made

  def __call__(self, image_id):
    return self[image_id]


def _edited():
  whole = SOURCE.copy() + np.uint8(5)
  whole[20:40, 10:30] = (250, 10, 10)
  return whole


def _probe(ctx, image, strategy="edit"):
  source_id = ctx.images.made.id_of(SOURCE)
  return Probe.make(
    ctx.images.made.put(image), "is there red", strategy=strategy, source_image_id=source_id
  )


def _measure(ctx, *probes):
  return [{g.name: g for g in row} for row in edits.measure(ctx, Bank(), probes)]


def test_a_local_edit_passes_and_a_whole_frame_does_not(tmp_path):
  ctx = _context(tmp_path, Client(2))
  local, mask = locality.composite(SOURCE, _edited())
  good, bad = _measure(ctx, _probe(ctx, local), _probe(ctx, _edited()))
  assert all(g.passed for g in good.values()) and set(good) == {
    "edit_outside",
    "edit_fraction",
    "sham_control",
  }
  assert (ctx.client.masks[0] == mask).all()
  assert not bad["edit_outside"].passed


def test_a_flip_on_the_sham_fails(tmp_path):
  ctx = _context(tmp_path, Client(-1))
  local, _ = locality.composite(SOURCE, _edited())
  (row,) = _measure(ctx, _probe(ctx, local))
  assert not row["sham_control"].passed and row["sham_control"].value == 1
  assert row["edit_outside"].passed


def test_a_sham_that_cannot_be_made_is_not_measured(tmp_path):
  ctx = _context(tmp_path, Client(None))
  local, _ = locality.composite(SOURCE, _edited())
  (row,) = _measure(ctx, _probe(ctx, local))
  assert row["sham_control"].passed is None and row["sham_control"].note
  assert row["edit_outside"].passed and row["edit_fraction"].passed


def test_without_local_edits_nothing_of_an_edit_is_measured(tmp_path):
  ctx = _context(tmp_path, Client(2))
  question = _probe(ctx, _edited(), "question")
  edited, asked = edits.unmeasured(ctx, [_probe(ctx, _edited()), question])
  assert [g.name for g in edited] == ["edit_outside", "edit_fraction", "sham_control"]
  assert all(g.passed is None for g in edited) and asked == ()


def test_questions_and_new_images_have_no_source_to_compare_with(tmp_path):
  ctx = _context(tmp_path, Client(2))
  rows = _measure(ctx, _probe(ctx, SOURCE, "question"), _probe(ctx, _edited(), "generate"))
  assert rows == [{}, {}] and not ctx.client.masks


def test_the_file_is_what_counts(tmp_path):
  """A file that no longer holds the composite is seen, whatever is still in memory."""
  ctx = _context(tmp_path, Client(2))
  local, _ = locality.composite(SOURCE, _edited())
  probe = _probe(ctx, local)
  ctx.images[probe.image_id] = local
  Image.fromarray(local // 2).save(ctx.images.made.path(probe.image_id))
  with pytest.raises(UserError, match="damaged"):
    _measure(ctx, probe)
