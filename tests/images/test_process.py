# SPDX-License-Identifier: Apache-2.0
"""The service as a child: restarts, drains, dies with its parent, imports little."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest

from auditdm_jax.images import process, stubs
from auditdm_jax.images.client import ImageClient
from auditdm_jax.images.config import ClientConfig
from auditdm_jax.images.failures import NoImageReason
from auditdm_jax.images.requests import Edit
from tests.images import fake

ROOT = pathlib.Path(__file__).parents[2]
SIZE = dict(width=8, height=8)


def _start(tmp_path, **flags):
  command = [sys.executable, str(ROOT / "tests/images/fake.py")]
  command += [f"--{k}={v}" for k, v in flags.items()]
  return process.start(command, log=tmp_path / "images.log", ready_s=30.0)


def _gone(pid: int, timeout_s: float) -> bool:
  until = time.monotonic() + timeout_s
  while time.monotonic() < until:
    try:
      state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
      return True
    if state == "Z":  # Ended; nobody has asked for its exit code.
      return True
    time.sleep(0.02)
  return False


def test_nothing_is_lost_when_the_server_is_killed_and_restarted(tmp_path):
  port = fake.free_port()
  service = _start(tmp_path, port=port, sleep_s=0.03)
  with ImageClient(
    service.address, config=ClientConfig(deadline_s=20.0, max_in_flight=8)
  ) as client:
    results = [client.generate(f"p{i}", seed=i, **SIZE) for i in range(80)]
    results[10].result(10.0)
    os.kill(service.pid, signal.SIGKILL)
    assert service.stop() == -signal.SIGKILL
    assert not all(f.done() for f in results)
    with _start(tmp_path, port=port, sleep_s=0.03):
      done = [f.result(20.0) for f in results]
  assert [r.failure for r in done] == [None] * 80
  assert max(r.timings.tries for r in done) > 1
  want = fake.pixels("p40", 40)
  np.testing.assert_array_equal(done[40].image, want)


def test_without_a_restart_every_future_ends_in_a_typed_failure(tmp_path):
  service = _start(tmp_path, sleep_s=0.5)
  with ImageClient(
    service.address, config=ClientConfig(deadline_s=10.0, max_in_flight=4, retries=2)
  ) as client:
    results = [client.generate(f"p{i}", seed=i, **SIZE) for i in range(12)]
    results[0].result(10.0)
    os.kill(service.pid, signal.SIGKILL)
    done = [f.result(30.0) for f in results]
  service.stop()
  failures = [r.failure for r in done if r.failure]
  assert failures and {f.reason for f in failures} == {NoImageReason.UNAVAILABLE}
  assert {f.fault for f in failures} == {"service"}
  assert all((r.image is None) == (r.failure is not None) for r in done)


def test_sigterm_finishes_what_is_in_flight(tmp_path):
  service = _start(tmp_path, sleep_s=1.0, max_batch=2)
  with ImageClient(service.address, config=ClientConfig(retries=0)) as client:
    results = [client.generate(f"p{i}", seed=i, **SIZE) for i in range(6)]
    time.sleep(1.0)
    codes = []
    stopper = threading.Thread(target=lambda: codes.append(service.stop()))
    stopper.start()
    assert fake.wait_for(lambda: client._replicas.all[0].serving is False)
    late = client.generate("late", seed=0, **SIZE).result(20.0)
    assert all(f.result(20.0).image is not None for f in results)
    stopper.join()
  assert late.failure.reason is NoImageReason.DRAINING and late.failure.fault == "service"
  assert codes == [0]
  assert service.stop() == 0


def test_sigterm_sends_what_is_finished(tmp_path):
  """Also what takes longer to encode than the server's own grace of a second."""
  service = _start(tmp_path, sleep_s=2.0, max_batch=24, drain_s=60)
  options = stubs.Options(encoding=stubs.WEBP_LOSSLESS)
  with grpc.insecure_channel(service.address) as channel, ImageClient(service.address):
    calls = [
      stubs.Stub(channel).generate.future(
        stubs.GenerateRequest(
          request_id=f"{i}", prompt="x", seed=i, width=720, height=720, options=options
        )
      )
      for i in range(24)
    ]
    time.sleep(1.5)
    assert service.stop(120.0) == 0
    assert [c.code() for c in calls] == [grpc.StatusCode.OK] * 24


def test_the_child_dies_with_its_parent(tmp_path):
  code = (
    "import os, sys; from auditdm_jax.images import process; "
    "handle = process.start([sys.executable, sys.argv[1]], log=sys.argv[2]); "
    "print(handle.pid, flush=True); os.kill(os.getpid(), 9)"
  )
  command = [sys.executable, "-c", code, "tests/images/fake.py", str(tmp_path / "log")]
  parent = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
  assert _gone(int(parent.stdout), 12.0)


def test_an_early_end_shows_the_last_line_of_the_log(tmp_path):
  command = [sys.executable, "-c", "import sys; print('so', file=sys.stderr); sys.exit('no files')"]
  with pytest.raises(process.NotStarted) as error:
    process.start(command, log=tmp_path / "log")
  said = (
    f"the image service ended with exit code 1 and last said 'no files'; see {tmp_path / 'log'}"
  )
  assert str(error.value) == said


def test_a_child_that_hangs_is_given_up(tmp_path):
  command = [sys.executable, "-c", "import time; time.sleep(60)"]
  with pytest.raises(process.NotStarted, match="not ready"):
    process.start(command, log=tmp_path / "log", ready_s=0.2)


@pytest.mark.parametrize("module", ["client", "server", "process"])
def test_neither_side_imports_jax_or_torch(module):
  code = (
    f"import sys, auditdm_jax.images.{module}; "
    "print(sorted({'jax', 'flax', 'torch', 'tensorflow'} & set(sys.modules)))"
  )
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert done.stdout.strip() == "[]", done.stderr


def test_a_kept_service_comes_back_at_its_address(tmp_path):
  config = tmp_path / "config.py"
  config.write_text(
    "from ml_collections import ConfigDict\n"
    "def get_config():\n  return ConfigDict({'images': {'backend': 'scenes', 'port': 0}})\n"
  )
  with process.keep(str(config), log=tmp_path / "log") as service:
    first = service.pid
    with ImageClient(service.address, config=ClientConfig(deadline_s=30.0)) as client:
      source = np.zeros((64, 64, 3), np.uint8)
      before = client.submit(Edit(source, "", 0, sham=True)).result(10.0)
      os.kill(first, signal.SIGKILL)
      after = client.submit(Edit(source, "", 1, sham=True)).result(30.0)
    assert before.failure is None and after.failure is None
    assert after.timings.tries > 1 and service.restarts == 1
    second = service.pid
    assert service.stop() == 0
  assert second != first and _gone(first, 1.0) and _gone(second, 1.0)


def test_a_service_that_cannot_start_again_is_given_pauses(tmp_path, monkeypatch):
  monkeypatch.setattr(process, "_PAUSE_S", 0.05)
  service, tried = _start(tmp_path), []

  def again(address):
    tried.append((address, time.monotonic()))
    raise process.NotStarted("no such weights")

  kept = process.Kept(service, again)
  os.kill(service.pid, signal.SIGKILL)
  assert fake.wait_for(lambda: len(tried) >= 3, 30.0)
  kept.stop()
  addresses, times = zip(*tried)
  assert set(addresses) == {service.address}
  # A look each 0.2 s, and pauses of 0.1 s and 0.2 s before it.
  assert times[1] - times[0] >= 0.3 and times[2] - times[1] >= 0.4


def test_a_backend_that_hangs_does_not_hold_up_the_end(tmp_path):
  service = _start(tmp_path, drain_s=0.3)
  with ImageClient(service.address, config=ClientConfig(retries=0)) as client:
    future = client.generate("forever", seed=0, **SIZE)
    time.sleep(0.3)
    start = time.monotonic()
    assert service.stop(grace_s=10.0) == 0
    assert time.monotonic() - start < 5.0
    assert future.result(5.0).failure.fault == "service"


def test_sigterm_while_the_model_loads_ends_it():
  port = fake.free_port()
  command = [sys.executable, str(ROOT / "tests/images/fake.py"), "--load_s=60", f"--port={port}"]
  child = subprocess.Popen(
    command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL
  )
  _wait_for_port(port)  # Before it is open, nobody would hear the signal.
  child.send_signal(signal.SIGTERM)
  assert child.wait(20.0) == 0


def _wait_for_port(port: int) -> None:
  until = time.monotonic() + 30.0
  while time.monotonic() < until:
    try:
      socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
      return
    except OSError:
      time.sleep(0.05)


def test_a_server_that_can_answer_no_more_ends(tmp_path):
  """By a bug of its own; whoever keeps it starts it again, and clients ask again."""
  service = _start(tmp_path)
  with ImageClient(service.address, config=ClientConfig(retries=0)) as client:
    failure = client.generate("mismade", seed=0, **SIZE).result(10.0).failure
    assert failure.reason is NoImageReason.DRAINING
  until = time.monotonic() + 10.0
  while service.is_alive() and time.monotonic() < until:
    time.sleep(0.05)
  assert not service.is_alive() and service.stop() == 1
  assert "no bytes" in service.log.read_text()
