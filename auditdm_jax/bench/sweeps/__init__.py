# SPDX-License-Identifier: Apache-2.0
"""Sweeps: the cells of an ablation over several seeds, and the table that compares them."""
