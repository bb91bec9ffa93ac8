# SPDX-License-Identifier: Apache-2.0
"""What a user of the package writes: each file is one short program or one piece of a config."""
