# SPDX-License-Identifier: Apache-2.0
"""The lock files have what the requirements ask for, each package with hashes."""

import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
LOCKS = {
  "requirements.lock": ["requirements.txt"],
  "launch/tpu/requirements.lock": ["requirements.txt", "launch/tpu/requirements.txt"],
  "launch/image_server/requirements.lock": ["launch/image_server/requirements.txt"],
}
_LOCKED = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^ ;\\]+)", re.M)


def _name(text: str) -> str:
  return re.sub(r"[-_.]+", "-", text).lower()


@pytest.mark.parametrize("lock", LOCKS)
def test_every_requirement_is_locked_with_hashes(lock):
  text = (ROOT / lock).read_text()
  entries = re.split(r"\n(?=[A-Za-z])", re.sub(r"^#.*\n", "", text, flags=re.M).strip())
  assert all("--hash=sha256:" in entry for entry in entries)
  locked = {_name(name): version for name, version in _LOCKED.findall(text)}
  for file in LOCKS[lock]:
    for line in (ROOT / file).read_text().splitlines():
      found = re.match(r"([A-Za-z0-9._-]+)(?:\[.*?\])?(.*)", line)
      if not found or line.startswith("#"):
        continue
      name, asked = _name(found[1]), found[2].strip()
      assert name in locked, f"{lock} lacks {name}: run ./launch/lock.sh"
      if asked.startswith("=="):
        assert locked[name] == asked[2:], f"{lock} has another {name}: run ./launch/lock.sh"


def test_images_install_by_hash():
  for folder in ("gke", "image_server"):
    text = (ROOT / "launch" / folder / "Dockerfile").read_text()
    assert "pip install" in text
    for line in re.findall(r"pip install.*", text):
      assert "--require-hashes -r launch/" in line, line


@pytest.mark.parametrize("lock", LOCKS)
def test_the_bill_of_materials_is_that_of_the_lock(lock):
  """CycloneDX: every locked version with its hashes, and nothing else."""
  bill = json.loads((ROOT / lock).with_name("sbom.cdx.json").read_text())
  assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
  listed = {}
  for part in bill["components"]:
    assert part["purl"] == f"pkg:pypi/{_name(part['name'])}@{part['version']}"
    hashes = [h for ref in part["externalReferences"] for h in ref["hashes"]]
    assert {h["alg"] for h in hashes} == {"SHA-256"}
    listed[_name(part["name"]), part["version"]] = sorted(h["content"] for h in hashes)
  text = re.sub(r"^#.*\n", "", (ROOT / lock).read_text(), flags=re.M).strip()
  locked = {}
  for entry in re.split(r"\n(?=[A-Za-z])", text):
    name, version = _LOCKED.findall(entry)[0]
    locked[_name(name), version] = sorted(re.findall(r"sha256:([0-9a-f]{64})", entry))
  assert listed == locked, "run ./launch/lock.sh sbom"
