# SPDX-License-Identifier: Apache-2.0
"""Text: tokenizers, prompt templates, and what the auditor is asked and replies."""
