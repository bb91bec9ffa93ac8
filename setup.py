# SPDX-License-Identifier: Apache-2.0
"""What pyproject.toml cannot say: the wheel brings configs/, data/ and examples/ along.

They lie in `auditdm_jax/share` there, and `auditdm init DIR` copies them out.
"""

from setuptools import find_namespace_packages, setup

SHARED = {
  "configs": ["**/*.py"],
  "examples": ["*.py"],
  # By name: prepared data sets may lie beside them.
  "data": [
    "judge/*",
    "photos/*",
    "scenes/*.py",
    "scenes/*.yaml",
    "scenes/diffusion/*",
    "scenes/needle/**/*",
    "scenes/pack/**/*",
    "scenes/weights/**/*",
    "styles/*",
    "vqav2/*.py",
    "vqav2/*.yaml",
  ],
}

setup(
  packages=[
    *find_namespace_packages(include=["auditdm_jax*"]),
    *(f"auditdm_jax.share.{name}" for name in SHARED),
  ],
  package_dir={f"auditdm_jax.share.{name}": name for name in SHARED},
  package_data={
    "": ["*.proto", "*.binpb", "*.html", "*.css", "*.js", "*.yaml", "py.typed"],
    **{f"auditdm_jax.share.{name}": globs for name, globs in SHARED.items()},
  },
  exclude_package_data={"": ["**/__pycache__/*"]},
)
