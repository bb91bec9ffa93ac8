# SPDX-License-Identifier: Apache-2.0
"""Formats of exports: what each trainer reads, from `rectify.export.Exported`."""
