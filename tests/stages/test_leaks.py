# SPDX-License-Identifier: Apache-2.0
"""leaks: from benchmarks on disk to the file that the gate asks."""

import pytest

from auditdm_jax import __main__ as main_lib
from auditdm_jax.audit import leaks as leaks_lib
from auditdm_jax.stages import grading, leaks
from tests.bench.layouts import fakes, made_parquet, made_raw, shared


@pytest.fixture(autouse=True)
def _flags():
  leaks.FLAGS.unparse_flags()
  for name in leaks.FLAGS:
    leaks.FLAGS[name].unparse()


def test_benchmarks_become_an_index(tmp_path, capsys):
  made_raw.gqa_raw(tmp_path / "gqa")
  made_parquet.mmmu_parquet(tmp_path / "mmmu")
  target = tmp_path / "leaks.npz"
  words = [f"gqa={tmp_path / 'gqa'}", f"mmmu/val={tmp_path / 'mmmu'}"]
  assert main_lib.run(["leaks", f"--output={target}", *words]) == 0
  assert f"wrote {target}: 6 items, 5 pictures" in capsys.readouterr().out
  index = leaks_lib.load(target)
  assert index.sources == ("gqa/testdev_balanced", "mmmu/val")
  image = fakes.np.full((60, 80, 3), 80, fakes.np.uint8)
  assert "q1" in {hit.item_id for hit in index.hits(image, shared.ASKED[1])}
  seen = grading._benchmarks((str(target),))
  assert seen is not None and grading._benchmarks(()) is None


@pytest.mark.parametrize(
  ("words", "message"),
  [
    ([], "no benchmarks; write such as"),
    (["gqa"], "'gqa': written BENCHMARK=PATH"),
    (["gqq=/x"], "no such benchmark (did you mean 'gqa'?)"),
    (["gqa=/nowhere"], "/nowhere: nothing is there"),
  ],
)
def test_mistakes_are_named(tmp_path, capsys, words, message):
  assert main_lib.run(["leaks", f"--output={tmp_path / 'x.npz'}", *words]) != 0
  assert message in capsys.readouterr().err and not (tmp_path / "x.npz").exists()
