# SPDX-License-Identifier: Apache-2.0
"""The service as a child process: started, found, stopped, and never left behind.

  with process.spawn("configs/scenes.py", log="runs/first/images.log") as service:
    client = ImageClient(service.address)

The child watches the pipe at its stdin and stops when its parent is gone, however that ended. A
child that ended by itself is started again at the same address (`keep`), so that clients which
retry see no more than a pause.
"""

from collections.abc import Callable, Mapping, Sequence
import json
import logging
import os
import pathlib
import selectors
import signal
import subprocess
import sys
import threading
import time
from typing import Any

_PARENT = "AUDITDM_IMAGES_PARENT"  # Set for a child whose stdin is its parent's pipe.
_ORPHAN_GRACE_S = 15.0
_LOG_TAIL, _LINE = 2000, 300  # bytes that are read, characters of the last line
_LOOK_S = 0.2  # between two looks at a kept child
_PAUSE_S, _MAX_PAUSE_S = 0.1, 30.0  # before it is started again, longer each time
_SETTLED_S = 60.0  # A child that lived so long is given the short pause again.
_LOG = logging.getLogger(__name__)


class NotStarted(RuntimeError):
  """The service ended or was not ready in time; the message has the last line of its log."""


class Handle:
  """A running child."""

  def __init__(self, process: subprocess.Popen, address: str, log: pathlib.Path):
    self._process = process
    self.address = address
    self.log = log

  def __enter__(self) -> "Handle":
    return self

  def __exit__(self, *_: object) -> None:
    self.stop()

  @property
  def pid(self) -> int:
    return self._process.pid

  def is_alive(self) -> bool:
    return self._process.poll() is None

  def stop(self, grace_s: float = 15.0) -> int:
    """Asks it to drain, kills it after the grace, returns its exit code; may be called twice."""
    return _end(self._process, grace_s)


class Kept:
  """A child that is started again whenever it ends without having been asked to.

  Attributes:
    address: stays the same.
    restarts: so far.
  """

  def __init__(self, first: Handle, again: Callable[[str], Handle]):
    self._handle, self._again = first, again
    self.address, self.restarts = first.address, 0
    self._stopped = threading.Event()
    self._keeper = threading.Thread(target=self._keep, name="image service", daemon=True)
    self._keeper.start()

  def __enter__(self) -> "Kept":
    return self

  def __exit__(self, *_: object) -> None:
    self.stop()

  @property
  def pid(self) -> int:
    """Of the child at present."""
    return self._handle.pid

  def stop(self, grace_s: float = 15.0) -> int:
    """As of a Handle, and for good."""
    self._stopped.set()
    self._keeper.join(grace_s)
    return self._handle.stop(grace_s)

  def _keep(self) -> None:
    pause, since = _PAUSE_S, time.monotonic()
    while not self._stopped.wait(_LOOK_S):
      if self._handle.is_alive():
        continue
      code = self._handle.stop()
      if time.monotonic() - since > _SETTLED_S:
        pause = _PAUSE_S
      _LOG.warning("the image service ended with exit code %d and is started again", code)
      if self._stopped.wait(pause):
        return
      pause, since = min(2 * pause, _MAX_PAUSE_S), time.monotonic()
      try:
        self._handle = self._again(self.address)
        self.restarts += 1
        if self._stopped.is_set():
          self._handle.stop()
      except NotStarted as error:  # Its requests end as failures of the service meanwhile.
        _LOG.error("%s", error)


def keep(
  config_path: str,
  *,
  log: str | os.PathLike,
  overrides: Mapping[str, Any] | None = None,
  ready_s: float = 120.0,
) -> Kept:
  """As `spawn`, and starts it again, at the address it had, whenever it ends by itself."""
  overrides = dict(overrides or {})

  def again(address: str) -> Handle:
    port = address.rpartition(":")[2]
    return spawn(config_path, log=log, overrides=overrides | {"images.port": port}, ready_s=ready_s)

  first = spawn(config_path, log=log, overrides=overrides, ready_s=ready_s)
  return Kept(first, again)


def spawn(
  config_path: str,
  *,
  log: str | os.PathLike,
  overrides: Mapping[str, Any] | None = None,
  ready_s: float = 120.0,
) -> Handle:
  """Starts `python -m auditdm_jax serve-images` and returns once it is SERVING.

  Args:
    config_path: as for --config, arguments after the colon included.
    log: file that takes the child's output, appended.
    overrides: config values such as {"images.port": 0}.
    ready_s: how long it may take.

  Raises:
    NotStarted: it ended, or was not ready in time.
  """
  command = [sys.executable, "-m", "auditdm_jax", "serve-images", f"--config={config_path}"]
  command += [f"--config.{key}={value}" for key, value in (overrides or {}).items()]
  return start(command, log=log, ready_s=ready_s)


def start(command: Sequence[str], *, log: str | os.PathLike, ready_s: float = 120.0) -> Handle:
  """Starts any command that prints {"address": …} on a line of stdout; otherwise as `spawn`."""
  log = pathlib.Path(log)
  log.parent.mkdir(parents=True, exist_ok=True)
  root = str(pathlib.Path(__file__).parents[2])
  path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
  with log.open("ab") as stderr:
    process = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=stderr,
      env={**os.environ, "PYTHONPATH": path, _PARENT: "1"},
      # Ctrl-C in the terminal is for the parent, which then stops its child in order.
      start_new_session=True,
    )
  try:
    address = _read_address(process, time.monotonic() + ready_s)
  except BaseException:
    _end(process, grace_s=1.0)
    raise
  if address is None:
    alive = process.poll() is None
    code = _end(process, grace_s=1.0)
    what = f"was not ready in {ready_s:g} s" if alive else f"ended with exit code {code}"
    raise NotStarted(f"the image service {what} and last said {_last_line(log)!r}; see {log}")
  return Handle(process, address, log)


def stop_with_parent() -> None:
  """In a child of `start`: SIGTERM to itself when the parent is gone. Elsewhere: nothing."""
  if os.environ.get(_PARENT) != "1":
    return

  def watch():
    while os.read(sys.stdin.fileno(), 4096):
      pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_ORPHAN_GRACE_S)
    os._exit(1)  # A backend that hangs has nobody left to kill it.

  threading.Thread(target=watch, name="parent", daemon=True).start()


def _read_address(process: subprocess.Popen, until: float) -> str | None:
  """Returns the address the child prints; None if it ends or takes too long."""
  fd, text = process.stdout.fileno(), b""
  with selectors.DefaultSelector() as selector:
    selector.register(fd, selectors.EVENT_READ)
    while selector.select(max(until - time.monotonic(), 0.0)):
      chunk = os.read(fd, 4096)
      if not chunk:
        process.wait()
        return None
      text += chunk
      for line in text.split(b"\n")[:-1]:
        if line.startswith(b'{"address"'):
          return json.loads(line)["address"]
  return None


def _end(process: subprocess.Popen, grace_s: float) -> int:
  process.terminate()
  try:
    process.wait(grace_s)
  except subprocess.TimeoutExpired:
    process.kill()
    process.wait()
  process.stdin.close()
  process.stdout.close()
  return process.returncode


def _last_line(log: pathlib.Path) -> str:
  """Returns the last line with text in a log."""
  lines = log.read_bytes()[-_LOG_TAIL:].decode(errors="replace").strip().splitlines()
  return lines[-1].strip()[:_LINE] if lines else "nothing"
