# SPDX-License-Identifier: Apache-2.0
"""What the README and the Dockerfile of the image server promise."""

import itertools
import json
import pathlib
import re
import shlex
import subprocess
import sys

from auditdm_jax.core import overrides
from auditdm_jax.core.config import build
from auditdm_jax.images.config import ImagesConfig, is_loopback
from auditdm_jax.stages.serve_images import ServedConfig
from tests.images import fake

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "launch/image_server"
IMPORTS = {  # where it is not the distribution's own name
  "absl": "absl-py",
  "grpc": "grpcio",
  "grpc_health": "grpcio-health-checking",
  "google": "grpcio-health-checking",
  "PIL": "pillow",
  "yaml": "pyyaml",
}


def _required() -> set[str]:
  lines = (FOLDER / "requirements.txt").read_text().splitlines()
  return {re.split(r"[~=<>\[]", line)[0] for line in lines if line and not line.startswith("#")}


def test_the_server_imports_nothing_that_its_requirements_lack():
  """Imports of the package's own modules, as far as a server with the scenes backend runs them."""
  code = """
import json, sys
from auditdm_jax import __main__
from auditdm_jax.stages import serve_images
print(json.dumps([m.__file__ for n, m in sys.modules.items() if n.startswith("auditdm_jax")]))
"""
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  files = [pathlib.Path(f) for f in json.loads(done.stdout)]
  files.append(ROOT / "auditdm_jax/images/diffusers_backend.py")
  assert len(files) > 15, done.stderr
  roots = set()
  for file in files:
    # Flush left: an import inside a function is of something optional.
    found = re.findall(r"^(?:from|import) ([\w]+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    roots.update(found)
  outside = roots - sys.stdlib_module_names - {"auditdm_jax"}
  names = {IMPORTS.get(root, root) for root in outside}
  transitive = {"huggingface_hub"}  # of transformers and diffusers, which pin it
  assert names - transitive <= _required()


def test_both_environments_pin_what_they_share_alike():
  def rows(path):
    lines = [line for line in path.read_text().splitlines() if line and line[0] not in "#-"]
    return {re.split(r"[~=<>\[]", line)[0]: line for line in lines}

  ours, theirs = rows(ROOT / "requirements.txt"), rows(FOLDER / "requirements.txt")
  shared = ours.keys() & theirs.keys()
  assert shared >= {"grpcio", "pillow", "prometheus_client"}
  assert {n: ours[n] for n in shared} == {n: theirs[n] for n in shared}


def test_everything_that_the_dockerfile_copies_is_there():
  text = (FOLDER / "Dockerfile").read_text()
  sources = re.findall(r"^COPY (?:--\S+ )?(\S+) \S+$", text, re.MULTILINE)
  assert len(sources) == 4 and all((ROOT / source).exists() for source in sources)
  entry = json.loads(re.search(r"^ENTRYPOINT (.*)$", text, re.MULTILINE).group(1))
  assert entry == ["python", "-m", "auditdm_jax", "serve-images"]
  (command,) = re.findall(r"^CMD (.*)$", text, re.MULTILINE)
  assert json.loads(command)[0].startswith("--config=configs/flux.py")
  assert re.search(r"^USER images$", text, re.MULTILINE), "not as root"


def test_the_config_of_flux_is_one_of_the_service():
  code = (
    "import json, sys; sys.path.insert(0, 'configs'); import flux;"
    "print(json.dumps(flux.get_config(sys.argv[1]).images.to_dict()))"
  )
  command = [sys.executable, "-c", code, "generate=/m/dev,edit=/m/kontext,metrics=9500"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  images = build(ImagesConfig, json.loads(done.stdout), name="config.images")
  assert images.model.edit == "/m/kontext" and images.metrics_port == 9500


def test_the_ports_that_the_dockerfile_publishes_are_open_outside_the_container():
  """Loopback inside a container is its own: a port that listens there is published to nobody."""
  text = (FOLDER / "Dockerfile").read_text().replace("\\\n#", "")
  words = shlex.split(re.search(r"^#   docker run (.*)$", text, re.MULTILINE)[1])
  published = [int(b.split(":")[-1]) for a, b in itertools.pairwise(words) if a == "-p"]
  config, *given = words[words.index("auditdm-images") + 1 :]
  spec = f"{ROOT}/{config.removeprefix('--config=')}"
  config = overrides.read(spec, given, ServedConfig)
  images = build(ImagesConfig, config.to_dict()["images"], name="config.images")
  assert published == [images.port, images.metrics_port]
  assert not is_loopback(images.host) and not is_loopback(images.metrics_host)


def _health(port: int) -> int:
  command = [sys.executable, str(FOLDER / "health.py"), f"http://127.0.0.1:{port}/metrics"]
  return subprocess.run(command, capture_output=True, timeout=30).returncode


def test_the_health_check_of_the_container():
  port, seen = fake.free_port(), []
  config = ImagesConfig(width=8, height=8, metrics_port=port)

  def warm(backend):
    seen.append(_health(port))
    return backend

  with fake.serving(fake.FakeBackend(), config, warm=warm):
    seen.append(_health(port))
  seen.append(_health(port))
  assert seen == [1, 0, 1]  # Loading, serving, gone.
