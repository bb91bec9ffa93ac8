# SPDX-License-Identifier: Apache-2.0
"""The report of an audit: one static folder that opens from file://, without network or scripts."""
