# SPDX-License-Identifier: Apache-2.0
"""What `runtime.setup` sets for a whole process."""

import json
import os
import subprocess
import sys

import pytest

CODE = """
import json, threadpoolctl
from auditdm_jax.core import runtime
runtime.setup()
print(json.dumps([x["num_threads"] for x in threadpoolctl.threadpool_info()]))
"""


def test_products_of_numpy_keep_one_thread(tmp_path):
  """Those of small matrices spin on all cores otherwise, and are no faster."""
  env = os.environ | {"OPENBLAS_NUM_THREADS": "2", "JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
  said = subprocess.check_output([sys.executable, "-c", CODE], env=env, text=True)
  assert set(json.loads(said)) == {1}


THREADS = """
import glob
from auditdm_jax.core import runtime
runtime.setup()
if {one}:
  runtime.use_one_thread()
import jax
jax.block_until_ready(jax.numpy.ones((256, 256)) @ jax.numpy.ones((256, 256)))
print(sum("XLAEigen" in open(f).read() for f in glob.glob("/proc/self/task/*/comm")))
"""


@pytest.mark.parametrize(
  ("given", "one", "threads"), [("", True, 1), ("3", True, 3), ("3", False, 3)]
)
def test_xla_has_one_thread_where_it_is_asked_to(tmp_path, given, one, threads):
  """By the names of the threads of the process."""
  env = {k: v for k, v in os.environ.items() if k != "NPROC"} | ({"NPROC": given} if given else {})
  env |= {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_PLATFORMS": "cpu"}
  code = THREADS.format(one=one)
  assert int(subprocess.check_output([sys.executable, "-c", code], env=env, text=True)) == threads
