# SPDX-License-Identifier: Apache-2.0
"""Learners of one shape are one program: compiled once for all tests of this folder."""

import jax
import pytest


@pytest.fixture(scope="session", autouse=True)
def _compile_once(tmp_path_factory):
  jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("xla")))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
