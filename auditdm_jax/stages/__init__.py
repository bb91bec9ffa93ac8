# SPDX-License-Identifier: Apache-2.0
"""The programs of the loop, one module each: `main(config, workdir) -> int`, run by `__main__`."""
