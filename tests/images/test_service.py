# SPDX-License-Identifier: Apache-2.0
"""The service through its client: images, failures and whose fault they are."""

import concurrent.futures
import contextlib
import hashlib
import time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
import numpy as np
import pytest

from auditdm_jax.images import client as client_lib
from auditdm_jax.images import failures, stubs
from auditdm_jax.images.client import ImageClient
from auditdm_jax.images.config import Batching, ClientConfig, ImagesConfig, Limits
from auditdm_jax.images.failures import NoImageReason
from tests.images import fake

SIZE = dict(width=8, height=8)


@pytest.fixture
def backend():
  return fake.FakeBackend()


@pytest.fixture
def service(backend):
  with fake.serving(backend) as (_, address, run):
    yield address, run


@pytest.fixture
def client(service):
  with ImageClient(service[0], config=ClientConfig(deadline_s=5.0, retries=2)) as client:
    yield client


@contextlib.contextmanager
def _held(images, backend, client, n):
  """A first request occupies the backend until n others are queued."""
  backend.go.clear()
  first = client.generate("first", seed=0, **SIZE)
  assert fake.wait_for(lambda: ["first"] in backend.calls)
  yield
  depth = lambda: images.metrics.registry.get_sample_value("auditdm_images_queue_depth")  # noqa: E731
  assert fake.wait_for(lambda: depth() == n)
  backend.go.set()
  assert first.result(10.0).image is not None


def _failure(future):
  result = future.result(10.0)
  assert result.image is None
  return result.failure


def test_generates(client):
  result = client.generate("a red circle", seed=3, **SIZE).result(5.0)
  want = fake.pixels("a red circle", 3)
  np.testing.assert_array_equal(result.image, want)
  assert result.failure is None
  assert result.timings.batch_size == 1 and result.timings.tries == 1
  assert not result.timings.cached


def test_edits(client):
  source = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
  result = client.edit(source[:, ::-1], "make it blue", seed=0).result(5.0)
  want = fake.pixels("make it blue", 0, 7, 5, source[:, ::-1])
  np.testing.assert_array_equal(result.image, want)


def test_big_messages_pass(backend):
  config = ImagesConfig(width=8, height=8, limits=Limits(max_pixels=1 << 21))
  source = np.zeros((1400, 1400, 3), np.uint8)  # 5.9 MB; gRPC's default limit is 4 MB.
  with fake.serving(backend, config) as (_, address, _), ImageClient(address) as client:
    assert client.edit(source, "x", seed=0).result(10.0).image.shape == source.shape


def test_oversize_is_the_requests_fault_and_not_retried(client):
  failure = _failure(client.edit(np.zeros((1025, 1024, 3), np.uint8), "x", seed=0))
  assert failure.reason is NoImageReason.INVALID_REQUEST and failure.fault == "service"
  failure = _failure(client.edit(np.zeros((2000, 2000, 3), np.uint8), "x", seed=0))
  assert failure.reason is NoImageReason.TOO_LARGE and "(try 1)" in failure.message


@pytest.mark.parametrize(
  "prompt, reason, fault, tries",
  [
    ("impossible", NoImageReason.INVALID_INSTRUCTION, "auditor", None),
    ("  ", NoImageReason.INVALID_PROMPT, "auditor", None),
    ("x" * 2001, NoImageReason.INVALID_PROMPT, "auditor", None),
    ("nul \0", NoImageReason.INVALID_PROMPT, "auditor", None),
    ("broken", NoImageReason.INTERNAL, "service", 2),
    ("small", NoImageReason.INTERNAL, "service", 2),
    ("poison", NoImageReason.INTERNAL, "service", 2),
  ],
)
def test_failures_have_a_reason_and_a_fault(client, prompt, reason, fault, tries):
  failure = _failure(client.generate(prompt, seed=0, **SIZE))
  assert (failure.reason, failure.fault) == (reason, fault)
  assert ("(try" in failure.message) == (tries is not None)
  assert tries is None or f"(try {tries})" in failure.message


@pytest.mark.parametrize(
  "prompt, reason",
  [
    ("impossible " + "🟥" * 1900, NoImageReason.INVALID_INSTRUCTION),
    ("long-winded " + "é" * 1900, NoImageReason.INTERNAL),
  ],
)
def test_a_long_message_does_not_lose_its_reason(service, prompt, reason):
  with ImageClient(service[0], config=ClientConfig(retries=0)) as client:
    failure = _failure(client.generate(prompt, seed=0, **SIZE))
  assert failure.reason is reason
  assert prompt[:100] in failure.message and len(failure.message.encode()) <= 1020


def test_text_that_is_not_unicode_is_the_auditors_fault(client):
  failure = _failure(client.generate("half a pair \ud800", seed=0, **SIZE))
  assert (failure.reason, failure.fault) == (NoImageReason.INVALID_PROMPT, "auditor")


def test_callers_bugs_raise_at_once(client):
  with pytest.raises(ValueError, match="seed"):
    client.generate("x", seed=-1, **SIZE)
  with pytest.raises(ValueError, match="uint8"):
    client.edit(np.zeros((4, 4, 3), np.float32), "x", seed=0)
  with pytest.raises(ValueError, match="address"):
    ImageClient("")


def test_seed_zero_is_legal_and_a_missing_one_is_not(client, service):
  assert client.generate("x", seed=0, **SIZE).result(5.0).image is not None
  with grpc.insecure_channel(service[0]) as channel, pytest.raises(grpc.RpcError) as error:
    stubs.Stub(channel).generate(stubs.GenerateRequest(request_id="a", prompt="x", **SIZE))
  assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
  assert failures.from_call(error.value).reason is NoImageReason.INVALID_REQUEST


def test_equal_requests_share_one_image(client, backend):
  one = [client.generate("twice", seed=1, **SIZE) for _ in range(8)]
  images = [f.result(5.0).image for f in one]
  again = client.generate("twice", seed=1, **SIZE).result(5.0)
  assert again.timings.cached
  for image in images:
    np.testing.assert_array_equal(image, again.image)
  assert sum(calls.count("twice") for calls in backend.calls) == 1


def test_same_id_and_seed_give_the_same_bytes_after_a_restart(client):
  first = client.generate("x", seed=5, request_id="id", **SIZE).result(5.0).image
  with fake.serving(fake.FakeBackend()) as (_, address, _), ImageClient(address) as other:
    second = other.generate("x", seed=5, request_id="id", **SIZE).result(5.0).image
  assert hashlib.sha256(first).digest() == hashlib.sha256(second).digest()


def test_same_id_with_another_body_is_refused(client):
  assert client.generate("one", seed=0, request_id="id", **SIZE).result(5.0).image is not None
  failure = _failure(client.generate("two", seed=0, request_id="id", **SIZE))
  assert (failure.reason, failure.fault) == (NoImageReason.ID_REUSED, "service")


def test_a_deadline_is_kept_and_then_refused_early():
  backend = fake.FakeBackend()
  with (
    fake.serving(backend) as (_, address, _),
    ImageClient(address, config=ClientConfig(deadline_s=0.5)) as client,
  ):
    backend.sleep_s = 1.0
    failure = _failure(client.generate("slow", seed=0, **SIZE))
    assert (failure.reason, failure.fault) == (NoImageReason.DEADLINE, "service")
    time.sleep(1.0)  # The batch ends, and the server knows how long one takes.
    calls = len(backend.calls)
    assert "expected" in _failure(client.generate("slow 2", seed=0, **SIZE)).message
    assert len(backend.calls) == calls


def test_a_full_queue_is_retried_until_there_is_room():
  config = ImagesConfig(
    width=8, height=8, limits=Limits(max_queue=2), batching=Batching(max_batch=2)
  )
  backend = fake.FakeBackend(0.01)
  with fake.serving(backend, config) as (_, address, _):
    with ImageClient(address, config=ClientConfig(retries=0)) as impatient:
      results = [impatient.generate(str(i), seed=0, **SIZE) for i in range(12)]
      reasons = {f.result(5.0).failure.reason for f in results if f.result(5.0).failure}
    assert reasons == {NoImageReason.QUEUE_FULL}
    with ImageClient(address, config=ClientConfig(retries=20)) as patient:
      results = [patient.generate(f"b{i}", seed=0, **SIZE) for i in range(30)]
      assert all(f.result(10.0).image is not None for f in results)


def test_a_poisoned_row_fails_alone():
  config = ImagesConfig(width=8, height=8, batching=Batching(max_batch=8))
  backend = fake.FakeBackend()
  with (
    fake.serving(backend, config) as (images, address, _),
    ImageClient(address, config=ClientConfig(retries=0)) as client,
  ):
    prompts = [f"row {i}" for i in range(6)] + ["impossible", "poison"]
    with _held(images, backend, client, len(prompts)):
      futures = [client.generate(p, seed=0, **SIZE) for p in prompts]
    results = [f.result(10.0) for f in futures]
  assert [r.failure and r.failure.reason for r in results] == [
    *[None] * 6,
    NoImageReason.INVALID_INSTRUCTION,
    NoImageReason.INTERNAL,
  ]
  assert results[0].timings.batch_size == 8
  calls = backend.calls[backend.calls.index(["first"]) + 1 :]
  assert [len(c) for c in calls[:2]] == [8, 4]


def test_only_like_sizes_share_a_batch():
  config, backend = ImagesConfig(**SIZE, batching=Batching(max_batch=4)), fake.FakeBackend()
  with fake.serving(backend, config) as (images, address, _), ImageClient(address) as client:
    with _held(images, backend, client, 9):
      small = [client.generate(f"s{i}", seed=0, **SIZE) for i in range(4)]
      wide = [client.generate(f"w{i}", seed=0, width=16, height=8) for i in range(3)]
      source = np.zeros((8, 8, 3), np.uint8)
      edits = [client.edit(source, f"e{i}", seed=0) for i in range(2)]
    sizes = [[f.result(10.0).timings.batch_size for f in fs] for fs in (small, wide, edits)]
  assert sizes == [[4] * 4, [3] * 3, [2] * 2]


def test_health_is_serving_only_after_warm_up():
  seen = []

  def state(address):
    with grpc.insecure_channel(address) as channel:
      request = health_pb2.HealthCheckRequest(service=stubs.SERVICE.full_name)
      return health_pb2_grpc.HealthStub(channel).Check(request, timeout=5.0).status

  def warm(backend):
    # Runs off the event loop, once the port is open.
    with ImageClient(address_of[0], config=ClientConfig(retries=0)) as early:
      seen.append(state(address_of[0]))
      seen.append(_failure(early.generate("x", seed=0, **SIZE)).reason)
      with pytest.raises(TimeoutError, match="NOT_SERVING"):
        early.wait_ready(3.0)
    return backend

  address_of = ["127.0.0.1:" + str(fake.free_port())]
  config = ImagesConfig(width=8, height=8, port=int(address_of[0].split(":")[1]))
  with fake.serving(fake.FakeBackend(), config, warm=warm) as (_, address, _):
    assert seen == [health_pb2.HealthCheckResponse.NOT_SERVING, NoImageReason.NOT_READY]
    with ImageClient(address) as client:
      client.wait_ready(20.0)
      assert client.info().name == "fake"


def test_the_last_state_that_was_told_is_named(monkeypatch):
  """And not that a look had no time left."""

  class TooLate(grpc.RpcError):
    def code(self):
      return grpc.StatusCode.DEADLINE_EXCEEDED

    def details(self):
      return "too late"

    def trailing_metadata(self):
      return ()

  said = iter(["NOT_SERVING"])

  def state_of(replica, timeout_s):
    if (state := next(said, None)) is None:
      raise TooLate
    return state

  monkeypatch.setattr(client_lib, "state_of", state_of)
  with ImageClient("127.0.0.1:1") as client:
    with pytest.raises(TimeoutError, match="NOT_SERVING"):
      client.wait_ready(0.3)
    with pytest.raises(TimeoutError, match="too late"):
      client.wait_ready(0.3)


def test_cancelling_one_caller_leaves_those_who_joined():
  config = ImagesConfig(width=8, height=8, batching=Batching(max_wait_ms=300.0))
  request = stubs.GenerateRequest(request_id="a", prompt="x", seed=0, **SIZE)
  with fake.serving(fake.FakeBackend(), config) as (_, address, _):
    with grpc.insecure_channel(address) as channel:
      calls = [stubs.Stub(channel).generate.future(request) for _ in range(2)]
      time.sleep(0.1)
      calls[0].cancel()
      assert calls[1].result(5.0).request_id == "a"


def test_a_cancelled_request_leaves_the_queue():
  backend = fake.FakeBackend()
  config = ImagesConfig(width=8, height=8, batching=Batching(max_wait_ms=300.0))
  request = stubs.GenerateRequest(request_id="a", prompt="unwanted", seed=0, **SIZE)
  with fake.serving(backend, config) as (_, address, _):
    with grpc.insecure_channel(address) as channel:
      call = stubs.Stub(channel).generate.future(request)
      time.sleep(0.1)
      call.cancel()
    with ImageClient(address) as client:
      assert client.generate("wanted", seed=0, **SIZE).result(5.0).image is not None
  assert ["unwanted"] not in backend.calls


def test_closing_ends_what_is_under_way():
  backend = fake.FakeBackend()
  with fake.serving(backend) as (_, address, _):
    backend.sleep_s = 4.0
    client = ImageClient(address, config=ClientConfig(max_in_flight=2))
    results = [client.generate(str(i), seed=0, **SIZE) for i in range(6)]
    time.sleep(0.1)
    start = time.monotonic()
    client.close()
    client.close()
    assert time.monotonic() - start < 3.5
    results.append(client.generate("late", seed=0, **SIZE))
    assert {_failure(f).reason for f in results} == {NoImageReason.CLOSED}


def test_a_dead_replica_takes_little():
  dead = f"127.0.0.1:{fake.free_port()}"
  with fake.serving(fake.FakeBackend()) as (_, address, _):
    with ImageClient([dead, address], config=ClientConfig(retries=5)) as client:
      results = [client.generate(str(i), seed=0, **SIZE) for i in range(40)]
      done = [f.result(10.0) for f in results]
  assert all(r.image is not None for r in done)
  assert sum(r.timings.tries for r in done) < 3 * len(done)


def test_a_second_server_cannot_take_the_port(service):
  config = ImagesConfig(width=8, height=8, port=int(service[0].split(":")[1]))
  with pytest.raises(Exception, match="cannot listen"):
    with fake.serving(fake.FakeBackend(), config):
      pass


def test_reasons_are_those_of_the_proto():
  ours = [r.name for r in NoImageReason]
  named = [name for name, number in stubs.REASON_NUMBERS.items() if number]
  assert named == ours[: len(named)]
  assert set(failures.RULES) == set(NoImageReason)


def test_futures_are_ordinary(client):
  some = [client.generate(str(i), seed=0, **SIZE) for i in range(4)]
  done, rest = concurrent.futures.wait(some, timeout=5.0)
  assert len(done) == 4 and not rest
