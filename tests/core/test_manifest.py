# SPDX-License-Identifier: Apache-2.0
from auditdm_jax.core.manifest import Manifest


def test_manifest(tmp_path):
  manifest = Manifest(tmp_path)
  assert manifest.record("train", config={"grpo": {"lr": 1.0, "kl": 0.0}}, seeds={"run": 1}) == []
  manifest.add_cost("train", images=3, device_seconds=1.5)
  manifest.add_cost("train", images=2)
  changed = manifest.record("train", config={"grpo": {"lr": 2.0, "beta": 0.0}}, seeds={"run": 1})
  assert changed == ["grpo.lr", "grpo.kl", "grpo.beta"]
  stage = manifest.read()["stages"]["train"]
  assert stage["cost"] == {"images": 5, "device_seconds": 1.5}
  assert stage["runs"] == 2 and stage["packages"]["jax"] and stage["config"]["grpo"]["lr"] == 2.0
