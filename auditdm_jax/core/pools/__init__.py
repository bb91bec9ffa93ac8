# SPDX-License-Identifier: Apache-2.0
"""The kinds of image sources behind `core.pool`."""
