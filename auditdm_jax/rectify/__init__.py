# SPDX-License-Identifier: Apache-2.0
"""Repair: examples from verified failures, recipes, fine-tuning here or in big_vision."""
