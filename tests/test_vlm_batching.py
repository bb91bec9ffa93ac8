# SPDX-License-Identifier: Apache-2.0
"""Rows and lengths come in few sizes, which fit into the memory."""

import dataclasses

from auditdm_jax import vlm_batching as batching
from tests.tiny_vlm import make


def test_rows_and_lengths_are_bucketed(monkeypatch):
  vlm = make("paligemma")
  assert [batching.padded_length(n) for n in (1, 8, 9, 127, 129, 300, 1100)] == [
    8,
    8,
    16,
    128,
    144,
    320,
    1152,
  ]
  assert all(batching.padded_length(n) < 1.125 * n + 8 for n in range(1, 3000))
  assert [batching.bucket(n, small=vlm._is_small) for n in (1, 8, 9)] == [8, 8, 16]
  monkeypatch.setattr(batching, "SMALL", 1)
  big = dataclasses.replace(vlm)
  assert [batching.bucket(n, small=big._is_small) for n in (1, 2, 3, 9)] == [1, 2, 4, 16]
  sizes = (1, 1 << 28, 3 << 28, 1 << 40)
  assert [batching._fitting_rows(n, 1, 64) for n in sizes] == [64, 16, 4, 1]
  assert [batching._fitting_rows(n, 4, 256) for n in sizes] == [256, 64, 16, 1]
