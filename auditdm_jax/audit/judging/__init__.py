# SPDX-License-Identifier: Apache-2.0
"""How the judge reads an answer: characters, numbers, units, words, and the comparison of two."""
