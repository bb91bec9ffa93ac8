# SPDX-License-Identifier: Apache-2.0
"""GRPO for the auditor: losses, rewards, the rollout that makes probes, and the sharded learner."""
