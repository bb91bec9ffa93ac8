# SPDX-License-Identifier: Apache-2.0
"""What everything else stands on: config, trees, meshes, masked means, records, checkpoints."""
