# SPDX-License-Identifier: Apache-2.0
import weakref

import jax
import jax.numpy as jnp
import numpy as np

from auditdm_jax.core import runtime
from tests import heap


class _Net:
  """Holds itself, by a jitted method."""

  def __init__(self):
    self.double = jax.jit(self._double)

  def _double(self, x):
    return 2 * x


def test_forgotten_programs_are_made_again_and_their_owners_go():
  kept, gone = _Net(), _Net()
  x = jnp.arange(3)
  kept.double(x), gone.double(x)
  assert runtime.programs(kept.double) == 1
  is_there = weakref.ref(gone)
  del gone
  runtime.forget_programs()
  assert runtime.programs(kept.double) == 0 and is_there() is None
  np.testing.assert_array_equal(kept.double(x), [0, 2, 4])
  assert runtime.programs(kept.double) == 1


@heap.needs_glibc
def test_what_forgotten_programs_leave_free_goes_back():
  kept = heap.fragmented()
  before = heap.resident()
  runtime.forget_programs()
  assert kept and before - heap.resident() > heap.FREED / 2
