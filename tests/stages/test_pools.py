# SPDX-License-Identifier: Apache-2.0
"""How the builder of a data set is called."""

import json

import numpy as np
from PIL import Image
import pytest

from auditdm_jax.core import pool as pool_lib
from auditdm_jax.core.config import UserError
from auditdm_jax.core.image_store import Images
from auditdm_jax.stages.pools import ImageSource, Pools
from auditdm_jax.stages.sections import PoolConfig

BUILDER = """
import json, pathlib, sys
pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(sys.argv[1:]))
"""


@pytest.mark.parametrize(
  ("dataset", "also"),
  [
    ("scenes/default/1.1.0", []),
    ("scenes/needle/1.1.0", ["--config=needle"]),
    ("photos/1.0.0", []),
  ],
)
def test_a_builder_makes_the_config_that_the_data_set_names(tmp_path, dataset, also):
  builder = tmp_path / "builder.py"
  builder.write_text(BUILDER)
  config = PoolConfig(
    builder=str(builder), data_dir="", dataset=dataset, images="a", heldout="b", fresh=""
  )
  pools = Pools(config, ImageSource(Images(tmp_path / "made"), cache_bytes=0), local=tmp_path)
  with pytest.raises(UserError):  # It made nothing.
    pools("images")
  called = json.loads(builder.with_suffix(".json").read_text())
  assert called == [f"--data_dir={tmp_path / 'data'}", *also]


def test_no_fresh_split_is_not_the_whole_data_set(tmp_path):
  (tmp_path / "own/train").mkdir(parents=True)
  Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "own/train/0.png")
  config = PoolConfig(
    builder="", data_dir=str(tmp_path), dataset="own", images="train", heldout="", fresh=""
  )
  pools = Pools(config, ImageSource(Images(tmp_path / "made"), cache_bytes=0), local=tmp_path)
  assert len(pools("images")) == 1
  for role in ("fresh", "heldout"):
    with pytest.raises(pool_lib.NoSplit, match=f"config.pool.{role} is empty: it must name a"):
      pools(role)
