# SPDX-License-Identifier: Apache-2.0
"""One client cannot ask without end, and the others do not pay for it."""

import types

import grpc
import pytest

from auditdm_jax.images import failures, rates, security, stubs
from auditdm_jax.images.client import ImageClient
from auditdm_jax.images.config import ImagesConfig, Limits
from auditdm_jax.images.failures import NoImageReason, Refused
from tests.images import fake


class Clock:
  now = 0.0

  def __call__(self):
    return self.now


def refused(buckets, client="a", images=1):
  with pytest.raises(Refused) as error:
    buckets.take(client, images)
  assert error.value.reason is NoImageReason.RATE_LIMITED
  return error.value.retry_s


def test_a_bucket_fills_up_at_its_rate():
  clock = Clock()
  buckets = rates.Rates(10.0, 5, clock=clock)
  for _ in range(5):
    buckets.take("a")
  assert refused(buckets) == pytest.approx(0.1)
  buckets.take("b")  # Another client has a bucket of its own.
  clock.now = 0.05
  assert refused(buckets) == pytest.approx(0.05), "being refused costs nothing"
  clock.now = 0.3
  buckets.take("a", 2)
  clock.now = 100.0
  buckets.take("a", 5)
  refused(buckets)


def test_a_batch_above_the_burst_is_taken_and_paid_back():
  clock = Clock()
  buckets = rates.Rates(10.0, 5, clock=clock)
  buckets.take("a", 25)
  assert refused(buckets) == pytest.approx(2.1)
  clock.now = 2.2
  buckets.take("a")
  assert refused(buckets, images=25) > 0


def test_no_rate_is_no_limit():
  buckets = rates.Rates(0.0, 1)
  for _ in range(1000):
    buckets.take("a")


def test_clients_that_are_remembered_are_bounded(monkeypatch):
  monkeypatch.setattr(rates, "_MAX_CLIENTS", 3)
  buckets = rates.Rates(1.0, 1, clock=Clock())
  for name in "abcd":
    buckets.take(name)
  refused(buckets, "d")
  buckets.take("a")  # Forgotten, and new.


@pytest.mark.parametrize(
  ("peer", "client"),
  [
    ("ipv4:127.0.0.1:5000", "ipv4 127.0.0.1"),
    ("ipv6:%5B::1%5D:5000", "ipv6 ::/64"),
    ("ipv6:[2001:db8:1:2:3::4]:5000", "ipv6 2001:db8:1:2::/64"),
    ("ipv6:[fe80::1%25eth0]:5000", "ipv6 fe80::/64"),
    ("ipv6:[::ffff:10.0.0.1]:5000", "ipv4 10.0.0.1"),
    ("unix:", "unix "),
    ("", " "),
  ],
)
def test_a_client_is_its_address_without_the_port(peer, client):
  context = types.SimpleNamespace(peer=lambda: peer, peer_identities=lambda: None)
  assert security.client_of(context) == client


def test_a_client_with_a_certificate_is_its_name():
  context = types.SimpleNamespace(peer=lambda: "ipv4:1.2.3.4:5", peer_identities=lambda: [b"host"])
  assert security.client_of(context) == "name host"


def test_a_server_refuses_with_a_hint_and_the_client_comes_back_by_it():
  limits = Limits(client_rate=2.0, client_burst=3)
  config = ImagesConfig(width=8, height=8, limits=limits)
  with fake.serving(fake.FakeBackend(), config) as (_, address, _):
    with grpc.insecure_channel(address) as channel:
      stub = stubs.Stub(channel)
      calls = [
        stub.generate.future(
          stubs.GenerateRequest(request_id=f"{i}", prompt="x", seed=0, width=8, height=8)
        )
        for i in range(12)
      ]
      errors = [call.exception() for call in calls if call.exception()]
      assert errors, "twelve at once are more than three"
      for error in errors:
        said = failures.from_call(error)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert said.reason is NoImageReason.RATE_LIMITED and 0 < said.retry_s <= 0.5
        assert "images.limits.client_rate" in said.message and "2 images a second" in said.message
    with ImageClient(address) as client:
      asked = [client.generate(f"p{i}", seed=i, width=8, height=8) for i in range(6)]
      results = [future.result(60.0) for future in asked]
  assert all(result.image is not None for result in results)
  assert max(result.timings.tries for result in results) > 1
