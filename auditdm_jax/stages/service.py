# SPDX-License-Identifier: Apache-2.0
"""The image service of a run: one that runs already, or one that is started and kept alive."""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import os
import pathlib
import secrets
from typing import Any

from auditdm_jax.core import paths, runtime
from auditdm_jax.core.config import TryLater, UserError
from auditdm_jax.images import process
from auditdm_jax.images.client import ImageClient
from auditdm_jax.images.config import ImagesConfig, Security, is_loopback


@contextlib.contextmanager
def connected(
  config: ImagesConfig, rows: Mapping[str, Any], *, local: pathlib.Path, known: bool = False
) -> Iterator[ImageClient]:
  """Yields a client of the service at `config.address`, or of a service of this process's own.

  Args:
    config: config.images.
    rows: the same as the config file has it, for the service's own config.
    local: a folder of this machine for that config and the service's log.
    known: whether the run has had its images from there before.

  Raises:
    TryLater: nobody is there at present, where there was a service before.
    UserError: nobody is there, it did not start, or the address or a file is invalid.
  """
  with contextlib.ExitStack() as stack:
    address, own = config.address, config.client
    if not address:
      address, token = stack.enter_context(_own_service(config, rows, local))
      if token:
        security = dataclasses.replace(own.security, token=token)
        own = dataclasses.replace(own, security=security)
    try:
      client = ImageClient(address, config=own)
      stack.callback(client.close)
      client.wait_ready(config.ready_s)
    except TimeoutError as error:
      if not (known and config.address):
        raise UserError(f"config.images: {error}") from error
      raise TryLater(f"config.images: {error}. The same command continues") from error
    except (OSError, ValueError) as error:
      raise UserError(f"config.images: {error}") from error
    yield client


@contextlib.contextmanager
def _own_service(
  config: ImagesConfig, rows: Mapping[str, Any], local: pathlib.Path
) -> Iterator[tuple[str, str]]:
  """Yields address and token file of a service that lives as long as the block.

  Nobody else on this machine may ask it. "" stands for the credentials that the config has itself.
  """
  suffix = f"_{runtime.index()}" if runtime.count() > 1 else ""  # One per process.
  path = local / f"images_config{suffix}.py"
  section, token = {"port": 0} | dict(rows), local / f".images_token{suffix}"
  is_ours = config.security == Security() == config.client.security and is_loopback(config.host)
  if is_ours:
    token.unlink(missing_ok=True)
    with open(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as f:
      f.write(secrets.token_hex(32))
    section["security"] = {"token": str(token)}
  paths.write_bytes(
    path,
    "from ml_collections import ConfigDict\n\n\ndef get_config():\n"
    f"  return ConfigDict({{'images': {section!r}}})\n".encode(),
  )
  try:
    running = process.keep(str(path), log=local / f"images{suffix}.log", ready_s=config.ready_s)
  except process.NotStarted as error:
    raise UserError(f"config.images: {error}") from error
  try:
    yield running.address, str(token) if is_ours else ""
  finally:
    running.stop()
    token.unlink(missing_ok=True)
