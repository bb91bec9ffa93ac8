# SPDX-License-Identifier: Apache-2.0
"""What `runtime.setup` sets for a whole process."""

import json
import os
import subprocess
import sys

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
import glob, json, os
from auditdm_jax.core import runtime
runtime.setup()
if {one}:
  runtime.use_one_thread()
import jax
jax.block_until_ready(jax.numpy.ones((256, 256)) @ jax.numpy.ones((256, 256)))
threads = sum("XLAEigen" in open(f).read() for f in glob.glob("/proc/self/task/*/comm"))
print(json.dumps([threads, os.environ.get("NPROC", ""), os.environ.get("XLA_FLAGS", "")]))
"""


def _said(tmp_path, *, one=False, **given):
  """[threads of XLA, NPROC, XLA_FLAGS] of a process of its own; threads by their names."""
  env = {k: v for k, v in os.environ.items() if k not in ("NPROC", "XLA_FLAGS")} | given
  env |= {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_PLATFORMS": "cpu"}
  code = THREADS.format(one=one)
  return json.loads(subprocess.check_output([sys.executable, "-c", code], env=env, text=True))


def test_xla_has_one_thread_where_it_is_asked_to_and_the_user_did_not_say(tmp_path):
  assert _said(tmp_path, one=True)[:2] == [1, ""], "what it starts chooses for itself"
  assert _said(tmp_path, one=True, NPROC="3")[:2] == [3, "3"]
  assert _said(tmp_path, NPROC="3")[:2] == [3, "3"]


def test_kernels_are_optimised_less_unless_the_user_says_how_much(tmp_path):
  assert _said(tmp_path)[2].split() == ["--xla_backend_optimization_level=1"]
  own = "--xla_backend_optimization_level=2"
  assert _said(tmp_path, XLA_FLAGS=own)[2] == own
