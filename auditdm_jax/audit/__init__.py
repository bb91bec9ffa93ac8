# SPDX-License-Identifier: Apache-2.0
"""From probes to evidence: answers, consensus, gates, grades, failure modes, rates, comparison."""
