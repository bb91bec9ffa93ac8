# SPDX-License-Identifier: Apache-2.0
"""Does it fit, and what will it cost: programs compiled for chips that are not there."""
