# SPDX-License-Identifier: Apache-2.0
"""Leaves: what is read is what is there, whatever the parts it is read in."""

import jax
import ml_dtypes
import numpy as np
import pytest

from auditdm_jax.core.config import UserError
from auditdm_jax.models import leaves
from auditdm_jax.models.leaves import Leaf

RNG = np.random.default_rng(0)


def counting(array, source="x"):
  """A leaf, and the list of what was read of it."""
  reads = []

  def read(index):
    reads.append(index)
    return array[index]

  return Leaf(array.shape, array.dtype, read, source), reads


@pytest.mark.parametrize("size", [1, 50, 100, 10_000])
@pytest.mark.parametrize("shape", [(), (7,), (7, 3, 4), (0, 4)])
def test_pieces_are_the_whole(monkeypatch, shape, size):
  monkeypatch.setattr(leaves, "_PIECE_BYTES", size)
  array = np.asarray(RNG.standard_normal(shape), np.float32)
  leaf, _ = counting(array)
  pieces = list(leaf.pieces())
  assert b"".join(p.tobytes() for p in pieces) == array.tobytes() == leaf.whole().tobytes()
  if shape == (7, 3, 4):
    assert len(pieces) == {1: 7, 50: 7, 100: 4, 10_000: 1}[size]


def test_a_stack_reads_only_the_parts_asked_for():
  arrays = [RNG.standard_normal((4, 5)).astype(ml_dtypes.bfloat16) for _ in range(3)]
  parts, reads = zip(*(counting(a) for a in arrays))
  stacked = leaves.stack(parts)
  index = (slice(1, 3), slice(0, 2), slice(4, 5))
  np.testing.assert_array_equal(stacked.read(index), np.stack(arrays)[index])
  assert [len(r) for r in reads] == [0, 1, 1]
  np.testing.assert_array_equal(stacked.whole(), np.stack(arrays))


@pytest.mark.parametrize("other", [np.zeros((4, 6), np.float32), np.zeros((4, 5), np.float16)])
def test_a_stack_of_unlike_parts_names_them(other):
  parts = [counting(np.zeros((4, 5), np.float32), "a")[0], counting(other, "layer 1")[0]]
  with pytest.raises(UserError, match="layer 1: .* but a is float32"):
    leaves.stack(parts)


def test_a_stack_of_several_dtypes_is_cast_to_the_one_asked_for():
  arrays = [RNG.standard_normal((4, 5)).astype(d) for d in (ml_dtypes.bfloat16, "f4", "f2")]
  stacked = leaves.stack([leaves.of_array(a) for a in arrays], np.float32)
  assert stacked.dtype == np.float32
  np.testing.assert_array_equal(stacked.whole(), np.stack([a.astype("f4") for a in arrays]))
  alike = [leaves.of_array(a) for a in arrays[:1] * 2]
  assert leaves.stack(alike, np.float32).dtype == ml_dtypes.bfloat16
  with pytest.raises(UserError, match="but"):
    leaves.stack([leaves.of_array(a) for a in (arrays[0], np.ones((4, 5), int))], np.float32)


def test_a_cast_that_loses_finite_values_is_an_error():
  array = np.array([1.0, -7e4, np.inf, np.nan], np.float32)
  leaf, _ = counting(array, "file: w")
  with pytest.raises(UserError, match="file: w: has values that are not finite in float16"):
    leaves.cast(leaf, np.float16).whole()
  # What was not finite before is not the cast's fault.
  short = leaves.cast(leaf, ml_dtypes.bfloat16)
  assert short.dtype == ml_dtypes.bfloat16 and np.isfinite(short.whole()[:2].astype("f4")).all()
  assert leaves.cast(leaf, np.float32) is leaf


@pytest.mark.parametrize("size", [1, 10_000])
def test_place_copies(monkeypatch, size):
  """The array of the file may change or go away; the device's does not."""
  monkeypatch.setattr(leaves, "_PIECE_BYTES", size)
  arrays = {"a": RNG.standard_normal((64, 64)).astype(np.float32), "b": np.float32(3)}
  placed = leaves.place({k: leaves.of_array(v) for k, v in arrays.items()}, None)
  before = arrays["a"].copy()
  arrays["a"][:] = 0
  np.testing.assert_array_equal(placed["a"], before)
  assert placed["b"] == 3
  short = leaves.place({"a": leaves.of_array(before)}, None, dtype="bfloat16")["a"]
  assert short.dtype == jax.numpy.bfloat16
  np.testing.assert_array_equal(short, before.astype(ml_dtypes.bfloat16))


def test_each_part_is_read_once(run_python):
  """Split over two of four devices: each half is read once, although two devices hold it."""
  run_python(
    """
    import jax, numpy as np
    from auditdm_jax.core import mesh as mesh_lib
    from auditdm_jax.models import leaves
    array = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    reads = []
    def read(index):
      reads.append(index)
      return array[index]
    mesh = mesh_lib.make_mesh({"a": 2, "b": 2})
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "a"))
    leaf = leaves.Leaf(array.shape, array.dtype, read)
    placed = leaves.place({"x": leaf}, {"x": sharding})["x"]
    np.testing.assert_array_equal(placed, array)
    assert placed.sharding == sharding
    assert len(reads) == 2 and all(i[1].stop - i[1].start == 4 for i in reads), reads
    """,
    devices=4,
  )
