# SPDX-License-Identifier: Apache-2.0
"""Repair: training examples from verified failures, the recipes, fine-tuning here or in big_vision."""
