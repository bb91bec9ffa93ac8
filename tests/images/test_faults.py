# SPDX-License-Identifier: Apache-2.0
"""Many requests and everything that goes wrong at once: each ends in an image or a typed failure.

Three replicas: one that is killed and started again, a slow one whose connections are cut (also
in the middle of a reply), and an address where nobody is. Among honest requests are those with a
short deadline, an oversize image, a bomb, malformed bytes and a wrong token.
"""

import contextlib
import os
import pathlib
import random
import signal
import sys
import threading
import time

import grpc
import numpy as np
import pytest

from auditdm_jax.images import failures, process, replicas, stubs
from auditdm_jax.images.client import ImageClient
from auditdm_jax.images.config import ClientConfig, Security
from auditdm_jax.images.failures import NoImageReason
from auditdm_jax.images.requests import Edit, Generate
from tests.images import fake, rogue
from tests.images.test_codec import bomb_png

ROOT = pathlib.Path(__file__).parents[2]
SIDE = 32
BOMB = bomb_png()


def _serve(tmp_path, name, **flags):
  command = [sys.executable, str(ROOT / "tests/images/fake.py"), "--max_queue=8", "--cache_mb=2"]
  command += [f"--{key}={value}" for key, value in flags.items()]
  return process.start(command, log=tmp_path / f"{name}.log", ready_s=30.0)


def _rss_mb(pid: int) -> float:
  text = pathlib.Path(f"/proc/{pid}/status").read_text()
  return int(text.partition("VmRSS:")[2].split()[0]) / 1024


class _Chaos:
  """Kills, and cuts connections, at random moments until it is stopped."""

  def __init__(self, kept, proxy, rng, *, kills):
    self.kills, self.cuts = 0, 0
    self._stop = threading.Event()
    self._thread = threading.Thread(target=self._run, args=(kept, proxy, rng, kills))
    self._thread.start()

  def end(self):
    self._stop.set()
    self._thread.join()

  def _run(self, kept, proxy, rng, kills):
    while not self._stop.wait(rng.uniform(0.05, 0.3)):
      what = rng.random()
      if what < 0.4 and self.kills < kills and kept.restarts == self.kills:
        os.kill(kept.pid, signal.SIGKILL)
        self.kills += 1
      elif what < 0.7:
        proxy.reply_bytes_left = rng.randrange(4000)
        self.cuts += 1
      else:
        proxy.cut()
        self.cuts += 1


def _raw(channel, metadata, index):
  """A request that no client of ours would send; its failure."""
  try:
    if index % 2:
      call = channel.unary_unary(f"/{stubs.SERVICE.full_name}/Generate")
      call(b"\xff\xfe garbage", timeout=20.0, metadata=metadata)
    else:
      source = stubs.Image(encoding=stubs.PNG, width=SIDE, height=SIDE, data=BOMB)
      request = stubs.EditRequest(request_id=f"bomb{index}", instruction="x", seed=0, source=source)
      stubs.Stub(channel).edit(request, timeout=20.0, metadata=metadata)
  except grpc.RpcError as error:
    return failures.from_call(error)
  return None


def _storm(tmp_path, *, requests: int, kills: int) -> None:
  rng = random.Random(requests)
  token = tmp_path / "token"
  token.write_text("right")
  (tmp_path / "wrong").write_text("wrong")
  right, wrong = (Security(token=str(tmp_path / name)) for name in ("token", "wrong"))
  flags = dict(token=token)
  with contextlib.ExitStack() as stack:
    first = _serve(tmp_path, "killed", sleep_s=0.005, **flags)
    again = lambda address: _serve(  # noqa: E731
      tmp_path, "killed", sleep_s=0.005, port=address.rpartition(":")[2], **flags
    )
    kept = stack.enter_context(process.Kept(first, again))
    slow = stack.enter_context(_serve(tmp_path, "slow", sleep_s=0.03, **flags))
    proxy = stack.enter_context(rogue.Proxy(slow.address))
    addresses = [kept.address, proxy.address, f"127.0.0.1:{fake.free_port()}"]
    client = stack.enter_context(
      ImageClient(addresses, config=ClientConfig(deadline_s=60.0, max_in_flight=12, security=right))
    )
    hasty = stack.enter_context(
      ImageClient(addresses, config=ClientConfig(deadline_s=0.002, security=right))
    )
    stranger = stack.enter_context(ImageClient(slow.address, config=ClientConfig(security=wrong)))
    channel = stack.enter_context(grpc.insecure_channel(slow.address))
    metadata = (("authorization", "Bearer right"),)
    before = _rss_mb(slow.pid), _rss_mb(os.getpid())

    outcomes: dict[int, list] = {i: [] for i in range(requests)}
    wanted: dict[int, set] = {}
    images: dict[int, np.ndarray] = {}
    futures = []
    chaos = _Chaos(kept, proxy, random.Random(1), kills=kills)
    try:
      for i in range(requests):
        kind = rng.random()
        if kind < 0.04:
          outcomes[i].append(_raw(channel, metadata, i))
          # A message that cannot be read never reaches a handler.
          wanted[i] = (
            {NoImageReason.PROTOCOL, NoImageReason.INTERNAL}
            if i % 2
            else {NoImageReason.INVALID_REQUEST}
          )
          continue
        asker = client
        if kind < 0.08:
          huge = np.zeros((2000, 1000, 3), np.uint8)
          request, wanted[i] = Edit(huge, "x", i), {NoImageReason.TOO_LARGE}
        elif kind < 0.12:
          request, wanted[i] = _generate(f"impossible {i}", i), {NoImageReason.INVALID_INSTRUCTION}
        elif kind < 0.16:
          asker, request = hasty, _generate(f"hasty {i}", i)
          wanted[i] = {
            NoImageReason.DEADLINE,
            NoImageReason.UNAVAILABLE,
            NoImageReason.QUEUE_FULL,
            NoImageReason.DRAINING,
          }
        elif kind < 0.20:
          asker, request, wanted[i] = (
            stranger,
            _generate(f"{i}", i),
            {NoImageReason.UNAUTHENTICATED},
          )
        elif kind < 0.4:
          source = fake.pixels("source", i, SIDE, SIDE)
          request = Edit(source, f"edit {i}", i)
          images[i] = fake.pixels(f"edit {i}", i, SIDE, SIDE, source)
        else:
          request, images[i] = _generate(f"p{i}", i), fake.pixels(f"p{i}", i, SIDE, SIDE)
        future = asker.submit(request)
        future.add_done_callback(lambda f, i=i: outcomes[i].append(f.result()))
        futures.append(future)
        if i % 10 == 0:
          time.sleep(rng.uniform(0.0, 0.03))
      for future in futures:
        future.result(90.0)
    finally:
      chaos.end()

    assert chaos.kills == kept.restarts or kept.restarts == chaos.kills - 1
    assert chaos.kills and chaos.cuts
    for i, got in outcomes.items():
      assert len(got) == 1, f"request {i} ended {len(got)} times"
      if i in images:
        assert got[0].failure is None, got[0].failure
        np.testing.assert_array_equal(got[0].image, images[i])
        continue
      failure = got[0] if isinstance(got[0], failures.NoImage) else got[0].failure
      if failure is None:  # So hasty and yet in time.
        assert got[0].image is not None and NoImageReason.DEADLINE in wanted[i]
      else:
        assert failure.reason in wanted[i], (i, failure)
        assert (failure.fault == "auditor") == (failure.reason is NoImageReason.INVALID_INSTRUCTION)

    logs = "".join(path.read_text() for path in tmp_path.glob("*.log"))
    assert "QUEUE_FULL" in logs or requests < 1000, "the queue of 8 was never full"
    after = _rss_mb(slow.pid), _rss_mb(os.getpid())
    assert after[0] - before[0] < 60 and after[1] - before[1] < 250, (before, after)
    with ImageClient([kept.address, slow.address], config=ClientConfig(security=right)) as fresh:
      fresh.wait_ready(30.0)
      for replica in fresh._replicas.all:
        assert replicas.state_of(replica, 5.0) == "SERVING"
      assert fresh.submit(_generate("last", 0)).result(20.0).image is not None


def _generate(prompt, seed):
  return Generate(prompt, seed, SIDE, SIDE)


def test_a_hundred_requests_in_a_storm(tmp_path):
  _storm(tmp_path, requests=100, kills=1)


@pytest.mark.slow
def test_a_thousand_requests_in_a_storm(tmp_path):
  _storm(tmp_path, requests=1000, kills=6)
