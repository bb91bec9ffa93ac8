# SPDX-License-Identifier: Apache-2.0
import functools
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from auditdm_jax.core.checkpoint import Checkpointer
from auditdm_jax.core.config import UserError


def state(value: float = 1.0):
  params = {"llm": {"w": jnp.full((4, 2), value, jnp.bfloat16)}, "b": jnp.full(3, value)}
  return {"params": params, "opt": optax.adamw(1e-3).init(params), "step": jnp.int32(value)}


def test_round_trip_in_a_new_checkpointer(tmp_path):
  extras = {"carried": [[1, "a"]], "seed": np.int64(3), "best": float("nan")}
  with Checkpointer(tmp_path / "new" / "ckpt") as checkpoints:
    assert checkpoints.latest() is None and checkpoints.steps() == []
    checkpoints.save(1, state(1.0), extras)
    checkpoints.save(2, state(2.0), extras)
  with Checkpointer(tmp_path / "new" / "ckpt") as checkpoints:
    step, tree, found = checkpoints.restore(None, jax.eval_shape(state))
    assert step == checkpoints.latest() == 2
    assert found == {"carried": [[1, "a"]], "seed": 3, "best": None}
    assert jax.tree.structure(tree) == jax.tree.structure(state())
    jax.tree.map(np.testing.assert_array_equal, tree, state(2.0))
    assert tree["params"]["llm"]["w"].dtype == jnp.bfloat16
    assert checkpoints.restore(1, state())[1]["step"] == 1


def test_retention(tmp_path):
  with Checkpointer(tmp_path, keep=2) as checkpoints:
    for step in (1, 3, 10, 11):
      checkpoints.save(step, {"w": np.ones(1)}, {})
    assert checkpoints.steps() == [10, 11]


def test_half_written_checkpoints_are_never_restored(tmp_path):
  with Checkpointer(tmp_path) as checkpoints:
    checkpoints.save(1, state(1.0), {})
    checkpoints.save(2, state(2.0), {})
  # What a kill leaves: the temporary folder, before it is renamed.
  torn = tmp_path / "3.orbax-checkpoint-tmp"
  shutil.copytree(tmp_path / "2", torn)
  shutil.rmtree(torn / "arrays")
  with Checkpointer(tmp_path) as checkpoints:
    assert checkpoints.steps() == [1, 2]
    assert checkpoints.restore(None, state())[0] == 2
    checkpoints.save(3, state(3.0), {})
    assert checkpoints.restore(None, state())[1]["step"] == 3
  assert not torn.exists()


def test_a_save_in_the_background_is_not_changed_by_a_donation(tmp_path):
  """The next update takes the buffers at once; the checkpoint must hold what was given to it."""
  update = jax.jit(functools.partial(jax.tree.map, lambda x: x + 1), donate_argnums=0)
  tree = {str(i): jnp.zeros((500, 1000)) for i in range(8)}
  with Checkpointer(tmp_path, keep=9) as checkpoints:
    for step in range(1, 4):
      tree = update(tree)
      checkpoints.save(step, tree, {})
      for _ in range(3):
        tree = update(tree)
    for step, want in ((1, 1), (2, 5), (3, 9)):
      for leaf in checkpoints.restore(step, tree)[1].values():
        np.testing.assert_array_equal(leaf, want)


def test_the_best_stays_beside_the_latest(tmp_path):
  scores = {1: 0.1, 2: 0.9, 3: 0.3, 4: float("nan"), 5: None, 6: 0.2}
  with Checkpointer(tmp_path, keep=1, keep_best=True) as checkpoints:
    for step, score in scores.items():
      checkpoints.save(step, {"w": np.ones(1)}, {}, score=score)
    assert checkpoints.steps() == [2, 6] and checkpoints.best() == 2
  with Checkpointer(tmp_path, keep=1, keep_best=True) as checkpoints:
    assert checkpoints.best() == 2
    checkpoints.save(7, {"w": np.ones(1)}, {}, score=1.0)
    assert checkpoints.steps() == [7] and checkpoints.best() == 7


def test_without_scores_there_is_no_best(tmp_path):
  with Checkpointer(tmp_path) as checkpoints:
    checkpoints.save(1, {"w": np.ones(1)}, {}, score=0.5)
    assert checkpoints.best() is None and checkpoints.latest() == 1


def empty(folder):
  shutil.rmtree(folder)
  folder.mkdir()


def flip(pattern):
  """Flips a bit in the middle of the largest of these files."""

  def damage(folder):
    path = max(folder.glob(pattern), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)

  return damage


def cut(pattern):
  """Cuts the largest of these files in half."""

  def damage(folder):
    path = max(folder.glob(pattern), key=lambda p: p.stat().st_size)
    os.truncate(path, path.stat().st_size // 2)

  return damage


@pytest.mark.parametrize(
  "damage",
  [
    empty,
    lambda folder: shutil.rmtree(folder / "arrays"),
    lambda folder: shutil.rmtree(folder / "extras"),
    lambda folder: (folder / "arrays/_METADATA").unlink(),
    cut("arrays/_METADATA"),
    cut("arrays/d/*"),
    cut("arrays/ocdbt.process_0/d/*"),
    cut("arrays/manifest.ocdbt"),
    cut("extras/metadata"),
    flip("arrays/ocdbt.process_0/d/*"),
    flip("arrays/d/*"),
    flip("arrays/_METADATA"),
    flip("extras/metadata"),
    flip("arrays/SHA256SUMS"),
    cut("arrays/SHA256SUMS"),
  ],
)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_goes_on(tmp_path, damage, caplog):
  tree = {"w": np.random.default_rng(0).random((300, 1000), np.float32), "step": np.zeros(())}
  with Checkpointer(tmp_path) as checkpoints:
    checkpoints.save(1, tree, {"is": 1})
    checkpoints.save(2, tree, {"is": 2})
  damage(tmp_path / "2")
  with Checkpointer(tmp_path) as checkpoints:
    with pytest.raises(UserError, match="goes on from step 1$") as error:
      checkpoints.restore(2, tree)
    said = str(error.value)
    assert f"{tmp_path}/2: the checkpoint cannot be read" in said and len(said.splitlines()) == 1
    step, restored, extras = checkpoints.restore(None, tree)
    assert (step, extras, checkpoints.steps()) == (1, {"is": 1}, [1])
    np.testing.assert_array_equal(restored["w"], tree["w"])
    (said,) = [r.getMessage() for r in caplog.records if "going on from" in r.getMessage()]
    assert f"{tmp_path}/2" in said and "damaged-2; going on from step 1" in said
    assert len(said.splitlines()) == 1
    checkpoints.save(2, tree, {"is": "new"})
  with Checkpointer(tmp_path) as checkpoints:
    assert checkpoints.restore(None, tree)[::2] == (2, {"is": "new"})


def test_the_file_that_has_changed_is_named(tmp_path):
  tree = {"w": np.random.default_rng(0).random((300, 1000), np.float32)}
  with Checkpointer(tmp_path) as checkpoints:
    checkpoints.save(1, tree, {})
  flip("arrays/ocdbt.process_0/d/*")(tmp_path / "1")
  with Checkpointer(tmp_path) as checkpoints:
    with pytest.raises(UserError, match=r"arrays/ocdbt\.process_0/d/\w+ is not the file that was"):
      checkpoints.restore(1, tree)


def test_a_checkpoint_of_before_there_were_sums_is_restored(tmp_path):
  with Checkpointer(tmp_path) as checkpoints:
    checkpoints.save(1, {"w": np.ones(3)}, {"is": 1})
  for path in (tmp_path / "1").rglob("SHA256SUMS"):
    path.unlink()
  with Checkpointer(tmp_path) as checkpoints:
    assert checkpoints.restore(None, {"w": np.zeros(3)})[2] == {"is": 1}


def test_the_only_checkpoint_is_not_set_aside(tmp_path):
  with Checkpointer(tmp_path) as checkpoints:
    checkpoints.save(2, {"w": np.zeros(1)}, {})
  empty(tmp_path / "2/arrays")
  with Checkpointer(tmp_path) as checkpoints:
    with pytest.raises(UserError, match="goes on from the start$"):
      checkpoints.restore(None, {"w": np.zeros(1)})
  assert (tmp_path / "2").exists()


def test_a_store_that_cannot_be_reached_is_no_damage(tmp_path, monkeypatch):
  with Checkpointer(tmp_path) as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, {"w": np.zeros(1)}, {})
    checkpoints.wait()

    def gone(*args, **kwargs):
      raise ValueError("UNAVAILABLE: no route to host")

    monkeypatch.setattr(checkpoints._manager, "restore", gone)
    with pytest.raises(ValueError, match="UNAVAILABLE"):
      checkpoints.restore(None, {"w": np.zeros(1)})
    assert checkpoints.steps() == [1, 2]


def test_a_lack_of_memory_is_no_damage(tmp_path, monkeypatch):
  with Checkpointer(tmp_path) as checkpoints:
    checkpoints.save(1, {"w": np.zeros(1)}, {})
    checkpoints.wait()

    def full(*args, **kwargs):
      raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")

    monkeypatch.setattr(checkpoints._manager, "restore", full)
    with pytest.raises(jax.errors.JaxRuntimeError):
      checkpoints.restore(1, {"w": np.zeros(1)})


SAVES = """
import sys, numpy as np
from auditdm_jax.core.checkpoint import Checkpointer
checkpoints = Checkpointer(sys.argv[1])
for step in range(1, 1000):
  checkpoints.save(step, {"w": np.full((300, 1000), step, np.float32)}, {"is": step})
  print(step, flush=True)
"""


def test_killed_while_saving(tmp_path):
  """kill -9 at some moment of an endless row of saves: what is left is whole."""
  for kill, after in enumerate((2, 4, 7)):
    folder = tmp_path / str(kill)
    root = pathlib.Path(__file__).parents[2]
    child = subprocess.Popen(
      [sys.executable, "-c", SAVES, str(folder)], cwd=root, stdout=subprocess.PIPE, text=True
    )
    started = [int(child.stdout.readline()) for _ in range(after)][-1]
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    with Checkpointer(folder) as checkpoints:
      latest, tree, extras = checkpoints.restore(None, {"w": np.zeros((300, 1000), np.float32)})
      assert latest >= started - 1 and extras == {"is": latest}
      np.testing.assert_array_equal(tree["w"], latest)


def test_errors_teach(tmp_path):
  with Checkpointer(tmp_path) as checkpoints:
    with pytest.raises(UserError, match="no checkpoint of step None"):
      checkpoints.restore(None, state())
    checkpoints.save(1, {"w": np.zeros((2, 3)), "old": np.zeros(1)}, {})
    with pytest.raises(UserError, match=r"no checkpoint of step 7; there are \[1\]"):
      checkpoints.restore(7, state())
    with pytest.raises(UserError) as error:
      checkpoints.restore(1, {"w": np.zeros((2, 4)), "new": np.zeros(1)})
  for text in ("missing new", "unused  old", "w: expected (2, 4), got (2, 3)"):
    assert text in str(error.value)


def test_saved_on_eight_devices_restored_on_one_and_back(tmp_path, run_python):
  run_python(
    f"""
    import jax, numpy as np
    from auditdm_jax.core import mesh as mesh_lib
    from auditdm_jax.core.checkpoint import Checkpointer

    mesh = mesh_lib.make_mesh({{"data": -1}})
    tree = {{"w": np.arange(16.0).reshape(8, 2)}}
    shardings = mesh_lib.shardings(mesh, [("w", ("data",))], tree)
    with Checkpointer({str(tmp_path)!r}) as checkpoints:
      checkpoints.save(1, jax.device_put(tree, shardings), {{}})
      abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
      )
      _, again, _ = checkpoints.restore(1, abstract)
    assert len(again["w"].addressable_shards) == 8
    assert again["w"].addressable_shards[3].data.shape == (1, 2)
    """,
    devices=8,
  )
  with Checkpointer(tmp_path) as checkpoints:
    _, tree, _ = checkpoints.restore(None, {"w": jax.ShapeDtypeStruct((8, 2), np.float32)})
  np.testing.assert_array_equal(tree["w"], np.arange(16.0).reshape(8, 2))
