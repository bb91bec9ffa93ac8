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
