# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: what is asked, how an answer is scored, and the table that comes out."""
