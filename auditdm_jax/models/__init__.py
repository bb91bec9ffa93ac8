# SPDX-License-Identifier: Apache-2.0
"""The models: one scanned Gemma decoder, one SigLIP tower, their wiring, decoding and weights."""
