# SPDX-License-Identifier: Apache-2.0
"""A pool that the image service can never be asked about ends a run before its first step."""

import types

import numpy as np
import pytest

from auditdm_jax.core.config import UserError
from auditdm_jax.images.backend import Info
from auditdm_jax.stages import asking

SCENES = Info("scenes", sizes=((64, 64),), exact=True)


class _Pool:
  """Images of these (width, height); counts those that were read."""

  def __init__(self, *sizes):
    self.sizes, self.read = sizes, []

  def __len__(self):
    return len(self.sizes)

  def image(self, i):
    self.read.append(i)
    width, height = self.sizes[i]
    return np.zeros((height, width, 3), np.uint8)


def _context(info):
  return types.SimpleNamespace(client=types.SimpleNamespace(info=lambda: info))


def test_it_is_refused():
  ctx, pool = _context(SCENES), _Pool((60, 43), (640, 427))
  with pytest.raises(UserError, match="none of 2 images of the pool: 'scenes' takes images of 64"):
    asking.image_client(ctx, pool)


def test_one_image_that_can_be_asked_is_enough_and_ends_the_search():
  pool = _Pool((60, 43), (64, 64), (64, 64))
  ctx = _context(SCENES)
  assert asking.image_client(ctx, pool) is ctx.client and pool.read == [0, 1]
  photographs = _Pool((60, 43), (640, 427))
  asking.image_client(_context(Info("flux", multiple=16)), photographs)
  assert photographs.read == [0]
