# SPDX-License-Identifier: Apache-2.0
"""Benchmarks as people have them on disk, each read to the same items.

    tfds      prepared TFDS data sets, under the names that big_vision's builders write
    tsv       VLMEvalKit's TSV files
    parquet   Hugging Face's Parquet folders, as lmms-eval downloads them
    raw       the files that the authors publish
    pool      anything that `core.pool` opens: JSONL, folders, tables; for benchmarks of one's own

No reader needs TensorFlow, and none holds pictures in memory.
"""
