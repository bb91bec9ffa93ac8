# SPDX-License-Identifier: Apache-2.0
"""A TFDS export is read by TFDS, and by the pools of an audit."""

import numpy as np
import tensorflow_datasets

from auditdm_jax.core import pool as pool_lib
from auditdm_jax.rectify.writers import tfds
from tests.rectify.exporting import PICTURES, collect, sourced


def test_it_comes_back_as_a_pool_and_is_made_twice(tmp_path, capsys):
  exported = collect([sourced(i, question=q) for i in range(4) for q in ("what is it", "wo é?")])
  for name in ("a", "b"):  # The second one has a builder of the same name.
    (tmp_path / name).mkdir()
    tfds.write(tmp_path / name, exported)
  folder = tmp_path / "b" / "auditdm_failures" / "1.0.0"
  builder = tensorflow_datasets.builder_from_directory(str(folder))
  assert {k: v.num_examples for k, v in builder.info.splits.items()} == {"train": 3, "val": 1}
  pool = pool_lib.open_pool(folder, "train")
  for i in range(len(pool)):
    assert pool.questions(i) == ("what is it", "wo é?") and pool.answers(i) == (("red",),) * 2
    np.testing.assert_array_equal(pool.image(i), PICTURES[pool.image_id(i)])
  assert not (tmp_path / "a/downloads").exists()
