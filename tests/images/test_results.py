# SPDX-License-Identifier: Apache-2.0
"""The cache of finished requests."""

from auditdm_jax.images.backend import Job
from auditdm_jax.images.failures import NoImageReason, Refused
from auditdm_jax.images.results import Cache


def test_a_refusal_weighs_what_it_says():
  cache = Cache(1 << 20)
  for i in range(20):
    refused = Refused(NoImageReason.INVALID_INSTRUCTION, "🟥" * 240)
    cache.put(Job(f"{i}", "x", i, 8, 8), refused)
  assert cache.nbytes == 20 * (1024 + 4 * 240)
