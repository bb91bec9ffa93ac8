# SPDX-License-Identifier: Apache-2.0
import dataclasses

import jax
import numpy as np
import pytest

from auditdm_jax.core import mesh as mesh_lib
from auditdm_jax.core.config import UserError


def test_one_device():
  mesh = mesh_lib.make_mesh({"data": -1, "model": 1}, devices=jax.devices()[:1])
  assert dict(mesh.shape) == {"data": 1, "model": 1}
  rules = [("w", ("data", None)), (".*", ())]
  tree = {"w": np.zeros((3, 2)), "b": np.zeros(2), "step": np.int32(0)}
  placed = jax.device_put(tree, mesh_lib.shardings(mesh, rules, tree))
  np.testing.assert_array_equal(placed["w"], tree["w"])


@dataclasses.dataclass(frozen=True)
class Chip:
  """What jax reads of a TPU chip to lay out a mesh."""

  id: int
  coords: tuple[int, ...]
  device_kind: str
  platform: str = "tpu"
  core_on_chip: int = 0
  process_index: int = 0
  slice_index: int = 0


@pytest.mark.parametrize("kind", ["TPU v5 lite", "TPU v6 lite"])
@pytest.mark.parametrize("shape", [(8, 2), (4, 4), (2, 2, 4)])
def test_an_axis_may_take_part_of_one_of_the_slice(kind, shape):
  """On every kind of TPU; neighbours on the last axis are neighbours in the grid of 4 x 4."""
  chips = [Chip(4 * y + x, (x, y, 0), kind) for y in range(4) for x in range(4)]
  mesh = mesh_lib.make_mesh(dict(zip("abc", shape)), devices=chips)
  assert mesh.devices.shape == shape and set(mesh.devices.flat) == set(chips)
  for a, b in zip(mesh.devices[..., 0].flat, mesh.devices[..., 1].flat):
    assert sum(abs(i - j) for i, j in zip(a.coords, b.coords)) == 1


def test_chips_of_two_slices_are_refused():
  chips = [Chip(i, (i, 0, 0), "TPU v6 lite", slice_index=i) for i in range(2)]
  with pytest.raises(UserError, match="one slice, and these chips are of 2"):
    mesh_lib.make_mesh({"data": 2}, devices=chips)


@pytest.mark.parametrize("shape", [{"data": 5}, {"data": -1, "model": -1}, {"data": 0}])
def test_sizes_must_use_up_the_devices(shape):
  with pytest.raises(UserError, match="mesh"):
    mesh_lib.make_mesh(shape, devices=jax.devices()[:1])


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    (("dta", None), r"no axis 'dta' \(did you mean 'data'\?\)"),
    (("data", None, None), "more entries than the array has axes"),
  ],
)
def test_wrong_rules(spec, message):
  mesh = mesh_lib.make_mesh({"data": 1}, devices=jax.devices()[:1])
  with pytest.raises(UserError, match=message):
    mesh_lib.shardings(mesh, [("w", spec)], {"w": np.zeros((3, 2))})


def test_lone_platform(monkeypatch):
  assert mesh_lib.lone_platform() == "cpu"
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert mesh_lib.lone_platform() == "gpu"
  with jax.default_device(jax.devices("cpu")[0]):
    assert mesh_lib.lone_platform() == "cpu"


def test_eight_devices(run_python):
  run_python(
    """
    import jax, numpy as np, optax
    from auditdm_jax.core import mesh as mesh_lib

    mesh = mesh_lib.make_mesh({"data": -1, "model": 2})
    assert dict(mesh.shape) == {"data": 4, "model": 2}
    assert all(t == jax.sharding.AxisType.Auto for t in mesh.axis_types)
    with mesh_lib.use(mesh):
      assert mesh_lib.lone_platform() == ""

    params = {"w": np.arange(64.0).reshape(8, 8), "b": np.zeros(3)}
    rules = [["w", [["data", "model"], None]], ["b", []]]  # As lists, from a config.
    state = {"params": params, "opt": optax.adam(1.0).init(params)}
    placed = jax.device_put(state, mesh_lib.shardings(mesh, rules, state))
    for w in (placed["params"]["w"], placed["opt"][0].mu["w"]):
      assert {s.data.shape for s in w.addressable_shards} == {(1, 8)}
    assert placed["params"]["b"].sharding == mesh_lib.replicated(mesh)

    x = jax.device_put(np.arange(16), mesh_lib.batch_sharding(mesh))
    assert [int(s.data[0]) for s in x.addressable_shards] == list(range(0, 16, 2))

    from auditdm_jax.core import runtime
    for most in (0, 64, 100, 10_000):  # Rows are of 32 bytes: one, two, three, all at a time.
      for w in (placed["params"]["w"], x, jax.numpy.float32(3) + placed["params"]["b"][0]):
        np.testing.assert_array_equal(runtime.in_pieces(w, most=most), np.asarray(w))

    try:
      mesh_lib.shardings(mesh, [("w", ("data",))], {"w": np.zeros((6, 8))})
    except ValueError as e:
      assert "w (6, 8): 6 is not a multiple of the 4 devices of ('data',)" in str(e), e
    else:
      raise AssertionError("6 rows on 4 devices")
    """,
    devices=8,
  )
