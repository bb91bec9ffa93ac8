# SPDX-License-Identifier: Apache-2.0
"""What retries, checks, counts and the cache cost beside a bare loop on the same server.

COMMAND
  python -m pytest -s -m perf tests/perf/test_endpoints.py
"""

import statistics

import pytest

from auditdm_jax.endpoints.config import EndpointConfig, LimitConfig
from benchmarks import endpoints

pytestmark = pytest.mark.perf


def test_throughput_is_that_of_a_bare_loop():
  with endpoints.fake_server(0.05) as url:
    config = EndpointConfig(url, "fake", limits=LimitConfig(concurrency=8))
    found = endpoints.measure(config, questions=300, size=64, rounds=5)
  ratios = [ours / bare for bare, ours in found]
  print(f"\nEndpoint over bare, {len(ratios)} rounds: {[round(r, 3) for r in ratios]}")
  assert statistics.median(ratios) >= 0.9
