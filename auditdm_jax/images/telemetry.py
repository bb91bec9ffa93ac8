# SPDX-License-Identifier: Apache-2.0
"""What the server tells its operators: Prometheus metrics and logs in JSON, never a prompt."""

import hashlib
import json
import logging
import pathlib
import time
import traceback
from typing import Any

import prometheus_client as prom

from auditdm_jax.images import worker

_SECONDS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_ROWS = (1, 2, 4, 8, 16, 32, 64)
_PREFIX = "auditdm_images"
_MAX_PLACES = 10
_MAX_ID = 64  # hex digits


class Metrics:
  """The gauges of one server, in a registry of their own."""

  def __init__(self):
    self.registry = registry = prom.CollectorRegistry()
    plain: dict[str, Any] = dict(namespace=_PREFIX, registry=registry)
    self.requests = prom.Counter(
      "requests", "Calls that ended.", ["method", "code", "reason"], **plain
    )
    self.images = prom.Counter("images", "Images made.", ["mode"], **plain)
    self.bytes_out = prom.Counter("bytes_out", "Bytes of images sent.", **plain)
    self.cache_hits = prom.Counter("cache_hits", "Answers from the cache.", **plain)
    self.joins = prom.Counter("joins", "Calls that joined one under way.", **plain)
    self.cancelled = prom.Counter("cancelled_batches", "Batches nobody waited for.", **plain)
    self.queue_depth = prom.Gauge("queue_depth", "Requests that wait.", **plain)
    self.queue_bytes = prom.Gauge("queue_bytes", "Bytes of their sources.", **plain)
    self.ready = prom.Gauge("ready", "1 while SERVING.", **plain)
    self.out_of_memory = prom.Gauge("out_of_memory", "Batches that did not fit.", **plain)
    self.queue_seconds = prom.Histogram(
      "queue_seconds", "Time in the queue.", buckets=_SECONDS, **plain
    )
    self.compute_seconds = prom.Histogram(
      "compute_seconds", "Time of a batch.", ["mode"], buckets=_SECONDS, **plain
    )
    self.encode_seconds = prom.Histogram(
      "encode_seconds", "Time to encode an answer.", ["encoding"], buckets=_SECONDS, **plain
    )
    self.batch_size = prom.Histogram("batch_size", "Rows of a batch.", buckets=_ROWS, **plain)
    self.batch_fill = prom.Histogram(
      "batch_fill",
      "Rows of a batch / rows it could have.",
      buckets=(0.125, 0.25, 0.5, 0.75, 1.0),
      **plain,
    )

  def ran(self, mode: str, rows: int, runner: worker.Runner, seconds: float) -> None:
    """Counts a batch."""
    self.images.labels(mode).inc(rows)
    self.compute_seconds.labels(mode).observe(seconds)
    self.batch_size.observe(rows)
    self.batch_fill.observe(rows / runner.max_batch)
    self.out_of_memory.set(runner.out_of_memory)


def text_hash(text: str) -> str:
  """Returns what stands for a prompt in the logs: enough to find it again, not to read it."""
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def outline(error: BaseException) -> str:
  """Returns what happened and where, without messages: they may quote a prompt."""
  frames = reversed(traceback.extract_tb(error.__traceback__)[-_MAX_PLACES:])
  places = [f"{pathlib.Path(frame.filename).name}:{frame.lineno}" for frame in frames]
  names = {}  # An ordered set: a batch that is halved fails in the handler of its own failure.
  while error is not None:
    names[type(error).__name__] = None
    error = error.__cause__ or error.__context__
  return f"{' of '.join(names)} at {' < '.join(places) or 'no place'}"


def log_call(log: logging.Logger, method: str, request: Any, reason: str, start: float) -> None:
  """One line per call; `start` is time.monotonic() at its begin, `request` its message or None."""
  fields = {"method": method, "reason": reason, "ms": round(1e3 * (time.monotonic() - start), 1)}
  if request is not None:
    fields["request_id"] = shown_id(request.request_id)
  if method in ("Generate", "Edit"):
    fields["text"] = text_hash(request.prompt if method == "Generate" else request.instruction)
  log.info("call", extra={"fields": fields})


def shown_id(request_id: str) -> str:
  """Returns an id as our clients make them; what others write there may be any text."""
  is_hex = len(request_id) <= _MAX_ID and set(request_id) <= set("0123456789abcdef")
  return request_id if is_hex else f"text {text_hash(request_id)}"


class JsonFormatter(logging.Formatter):
  """One line of JSON per record; `extra={"fields": {...}}` adds keys."""

  def format(self, record: logging.LogRecord) -> str:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    row = {
      "time": f"{stamp}.{int(record.msecs):03d}Z",
      "level": record.levelname,
      "logger": record.name,
      "message": record.getMessage(),
      **vars(record).get("fields", {}),
    }
    if record.exc_info:
      row["exception"] = self.formatException(record.exc_info)
    return json.dumps(row, ensure_ascii=True, default=str)


def log_as_json(level: int = logging.INFO) -> None:
  """Sends all logs of this process to stderr as JSON."""
  handler = logging.StreamHandler()
  handler.setFormatter(JsonFormatter())
  logging.basicConfig(level=level, handlers=[handler], force=True)
