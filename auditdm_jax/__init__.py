# SPDX-License-Identifier: Apache-2.0
"""AuditDM in JAX: train an auditor to find where a vision-language model fails, then repair it."""
