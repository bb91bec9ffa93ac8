# SPDX-License-Identifier: Apache-2.0
"""What gRPC does that one would not expect, each as a test.

1 messages above 4 MB      here and test_service.py (big, oversize)
2 retries above 256 KiB    here
3 at most five retries     here
4 dropped calls            here
5 pick_first, black holes  here, test_client.py (least outstanding), test_service.py (dead)
6 TLS mistakes             test_security.py
7 fork                     here
8 orphans                  test_process.py
9 proxies                  here
"""

import ast
import hashlib
import pathlib
import subprocess
import sys

import grpc
import numpy as np
import pytest

from auditdm_jax.images import codec, failures, stubs
from auditdm_jax.images.client import ImageClient
from auditdm_jax.images.config import Batching, ClientConfig, ImagesConfig, Limits
from auditdm_jax.images.failures import NoImageReason
from auditdm_jax.images.requests import Edit, Generate
from tests.images import fake, rogue

ROOT = pathlib.Path(__file__).parents[2]


def _generate(i):
  return Generate(f"p{i}", i, 8, 8)


def _response(request, image):
  return stubs.ImageResponse(
    request_id=request.request_id,
    image=codec.encode(image),
    sha256=hashlib.sha256(image).digest(),
  )


def test_1_a_message_above_the_limit_and_a_full_queue_have_one_code_and_two_reasons():
  backend = fake.FakeBackend(0.3)
  config = ImagesConfig(
    width=8, height=8, limits=Limits(max_pixels=1 << 21, max_queue=1), batching=Batching(1)
  )
  request = stubs.GenerateRequest(request_id="a", prompt="a", seed=0, width=1400, height=1400)
  with fake.serving(backend, config) as (_, address, _):
    with grpc.insecure_channel(address) as channel:  # With gRPC's own limits.
      stub = stubs.Stub(channel)
      large = stub.generate.future(request).exception()
      small = [
        stub.generate.future(
          stubs.GenerateRequest(request_id=f"{i}", prompt="x", seed=0, width=8, height=8)
        )
        for i in range(4)
      ]
      full = next(c.exception() for c in small if c.exception())
    with ImageClient(address) as client:
      assert client.submit(Generate("a", 0, 1400, 1400)).result(10.0).image is not None
  assert large.code() is full.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
  reasons = [failures.from_call(error).reason for error in (large, full)]
  assert reasons == [NoImageReason.TOO_LARGE, NoImageReason.QUEUE_FULL]
  assert [failures.RULES[r].max_tries for r in reasons] == [1, None]


def test_2_a_large_edit_is_asked_again_as_a_small_one_is():
  seen = []

  def answer(request, context, number):
    if number <= 2:
      context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")
    seen.append(len(request.source.data))
    return _response(request, np.zeros((1000, 1000, 3), np.uint8))

  with rogue.scripted(answer) as address, ImageClient(address) as client:
    source = np.zeros((1000, 1000, 3), np.uint8)
    result = client.submit(Edit(source, "x", 0)).result(20.0)
  assert result.failure is None and result.timings.tries == 3 and seen == [3_000_000]


def test_3_forty_calls_at_a_queue_of_eight_all_succeed():
  config = ImagesConfig(
    width=8, height=8, limits=Limits(max_queue=8), batching=Batching(max_batch=4)
  )
  with fake.serving(fake.FakeBackend(0.2), config) as (_, address, _):
    with ImageClient(address, config=ClientConfig(max_in_flight=40)) as client:
      futures = [client.submit(_generate(i)) for i in range(40)]
      results = [f.result(60.0) for f in futures]
  assert all(r.image is not None for r in results)
  assert max(r.timings.tries for r in results) > 1


def test_4_a_call_that_the_core_has_dropped_is_asked_again():
  def answer(request, context, number):
    if number <= 3:
      context.abort(grpc.StatusCode.CANCELLED, "dropped")
    return _response(request, np.zeros((8, 8, 3), np.uint8))

  with rogue.scripted(answer) as address, ImageClient(address) as client:
    assert client.submit(_generate(0)).result(10.0).timings.tries == 4


@pytest.mark.slow
def test_4_four_thousand_waiting_calls_are_not_dropped():
  config = ImagesConfig(
    width=8, height=8, limits=Limits(max_queue=5000), batching=Batching(max_batch=64)
  )
  with fake.serving(fake.FakeBackend(0.01), config) as (_, address, _):
    with grpc.insecure_channel(address) as channel:
      stub = stubs.Stub(channel)
      calls = [
        stub.generate.future(
          stubs.GenerateRequest(request_id=f"{i}", prompt=f"{i}", seed=0, width=8, height=8)
        )
        for i in range(4096)
      ]
      codes = {call.code() for call in calls}
  assert codes == {grpc.StatusCode.OK}


def test_5_all_replicas_get_work():
  """pick_first, the default of a channel with several addresses, would use one."""
  backends = [fake.FakeBackend(0.01) for _ in range(3)]
  with (
    fake.serving(backends[0]) as (_, a, _),
    fake.serving(backends[1]) as (_, b, _),
    fake.serving(backends[2]) as (_, c, _),
  ):
    with ImageClient([a, b, c], config=ClientConfig(max_in_flight=4)) as client:
      done = list(client.map_unordered([_generate(i) for i in range(90)]))
  assert all(r.failure is None for _, r in done)
  assert min(sum(map(len, x.calls)) for x in backends) > 15


def test_7_nothing_forks_without_exec():
  """A channel does not survive a fork; children of the package are started afresh."""
  for path in sorted((ROOT / "auditdm_jax/images").glob("*.py")):
    tree = ast.parse(path.read_text())
    names = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    names |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert not names & {"fork", "forkpty", "multiprocessing", "ProcessPoolExecutor"}, path


def test_7_a_parent_with_open_channels_can_start_children():
  with fake.serving(fake.FakeBackend()) as (_, address, _), ImageClient(address) as client:
    assert client.submit(_generate(0)).result(5.0).image is not None
    code = (
      "import sys; from auditdm_jax.images.client import ImageClient\n"
      "with ImageClient(sys.argv[1]) as c:\n"
      "  print(c.generate('p1', seed=1, width=8, height=8).result(10.0).image.sum())"
    )
    child = subprocess.run(
      [sys.executable, "-c", code, address], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert int(child.stdout) == fake.pixels("p1", 1).sum(), child.stderr
    assert client.submit(_generate(2)).result(5.0).image is not None


def test_9_no_proxy_of_the_environment_is_asked(monkeypatch):
  """gRPC would send a call to 127.0.0.1, and its token, through the proxy of the web."""
  for name in ("grpc_proxy", "https_proxy", "http_proxy"):
    monkeypatch.setenv(name, f"http://127.0.0.1:{fake.free_port()}")
  for name in ("no_grpc_proxy", "no_proxy", "NO_PROXY"):
    monkeypatch.delenv(name, raising=False)
  with fake.serving(fake.FakeBackend()) as (_, address, _):
    with ImageClient(address, config=ClientConfig(deadline_s=10.0)) as client:
      assert client.submit(_generate(0)).result(20.0).failure is None
