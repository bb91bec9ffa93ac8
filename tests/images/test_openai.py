# SPDX-License-Identifier: Apache-2.0
"""The backend of an OpenAI-compatible endpoint, against a small one on this machine."""

import base64
import dataclasses
import email.parser
import email.policy
import http.server
import io
import json
import threading
import time

import numpy as np
from PIL import Image
import pytest

from auditdm_jax.images import openai_backend, telemetry
from auditdm_jax.images.backend import Cancelled, Job, Made
from auditdm_jax.images.client import ImageClient
from auditdm_jax.images.config import Batching, ClientConfig, ImagesConfig, ModelConfig
from auditdm_jax.images.failures import NoImageReason, Refused
from auditdm_jax.images.openai_backend import EndpointError, OpenAIBackend
from tests.images import fake


def _png(image):
  data = io.BytesIO()
  Image.fromarray(image).save(data, "PNG")
  return data.getvalue()


def _source(k=0, width=24, height=16):
  return np.random.default_rng(k).integers(0, 256, (height, width, 3), np.uint8)


class _Endpoint(http.server.BaseHTTPRequestHandler):
  """Draws what the seed says; an edit is the source turned inside out. Some words mean trouble."""

  def do_POST(self):
    body = self.rfile.read(int(self.headers["Content-Length"]))
    kind = self.headers["Content-Type"]
    if kind == "application/json":
      fields, source = json.loads(body), None
    else:
      head = f"Content-Type: {kind}\r\n\r\n".encode()
      form = email.parser.BytesParser(policy=email.policy.default).parsebytes(head + body)
      parts = {p.get_param("name", header="content-disposition"): p for p in form.iter_parts()}
      source = np.asarray(Image.open(io.BytesIO(parts.pop("image").get_payload(decode=True))))
      fields = {name: part.get_payload(decode=True).decode() for name, part in parts.items()}
    server = self.server
    server.seen.append((self.path, self.headers["Authorization"], fields))
    time.sleep(server.sleep_s)
    self.reply(*self.answer(fields, source))

  def answer(self, fields, source):
    prompt = fields["prompt"]
    width, height = map(int, fields["size"].split("x"))
    if "forbidden" in prompt:
      return 400, {"error": {"code": "content_policy_violation", "message": "not that"}}
    if "unknown" in prompt:
      return 400, {"error": {"code": "invalid_value", "message": "no such model"}}
    if "busy" in prompt:
      return 503, "try later"
    if "quoted" in prompt:
      return 400, {"error": {"code": "invalid_value", "message": f"Invalid prompt: {prompt!r}"}}
    if "crowded" in prompt:
      return 429, {"error": {"code": "rate_limit_exceeded", "message": "slow down"}}
    if "elsewhere" in prompt:
      return 302, "http://127.0.0.1:1/"
    if "nonsense" in prompt:
      return 200, {"data": [{"b64_json": "?"}]}
    if "empty" in prompt:
      return 200, {"data": []}
    if "text" in prompt:
      return 200, {"data": [{"b64_json": base64.b64encode(b"no image").decode()}]}
    if "small" in prompt:
      width = 8
    image = _source(int(fields["seed"]), width, height) if source is None else 255 - source
    return 200, {"data": [{"b64_json": base64.b64encode(_png(image)).decode()}]}

  def reply(self, code, content):
    self.send_response(code)
    if code == 302:
      self.send_header("Location", content)
    if code == 429:
      self.send_header("Retry-After", "3")
    self.end_headers()
    self.wfile.write((content if isinstance(content, str) else json.dumps(content)).encode())

  def log_message(self, *_):
    pass


@pytest.fixture
def endpoint():
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Endpoint)
  server.seen, server.sleep_s, server.daemon_threads = [], 0.0, True
  thread = threading.Thread(target=server.serve_forever, args=(0.02,))
  thread.start()
  yield server
  server.shutdown()
  thread.join()
  server.server_close()


@pytest.fixture
def model(endpoint, monkeypatch):
  monkeypatch.setenv("IMAGES_KEY", "secret")
  port = endpoint.server_address[1]
  return ModelConfig(
    generate="flux",
    edit="kontext",
    url=f"http://127.0.0.1:{port}/v1/",
    api_key_env="IMAGES_KEY",
    multiple=8,
    timeout_s=5.0,
  )


def _job(text="a circle", k=0, **fields):
  return Job(f"r{k}", text, k, 24, 16, **(dict(steps=4, guidance=2.5) | fields))


def _ignore(i, n):
  del i, n


def test_generates_and_edits(endpoint, model):
  backend = OpenAIBackend(model, max_batch=4)
  (made,) = backend.run([_job("a red\ncircle", 3, negative="blue")], _ignore)
  np.testing.assert_array_equal(made.image, _source(3))
  (edited,) = backend.run([_job("grün: “make it blue”", source=_source(7))], _ignore)
  np.testing.assert_array_equal(edited.image, 255 - _source(7))
  (path, key, asked), (edit_path, _, edit_asked) = endpoint.seen
  assert (path, edit_path) == ("/v1/images/generations", "/v1/images/edits")
  assert key == "Bearer secret"
  assert asked == {
    "model": "flux",
    "prompt": "a red\ncircle",
    "size": "24x16",
    "n": 1,
    "seed": 3,
    "response_format": "b64_json",
    "num_inference_steps": 4,
    "guidance_scale": 2.5,
    "negative_prompt": "blue",
  }
  assert (edit_asked["model"], edit_asked["prompt"]) == ("kontext", "grün: “make it blue”")


def test_rows_are_asked_for_at_the_same_time_and_come_in_order(endpoint, model):
  endpoint.sleep_s = 0.3
  backend, seen = OpenAIBackend(model, max_batch=8), []
  start = time.monotonic()
  rows = backend.run([_job(k=k) for k in range(8)], lambda i, n: seen.append((i, n)))
  assert time.monotonic() - start < 7 * 0.3
  for k, row in enumerate(rows):
    np.testing.assert_array_equal(row.image, _source(k))
  assert seen == [(i, 8) for i in range(1, 9)]


def test_a_cancelled_batch_asks_for_no_more(endpoint, model):
  endpoint.sleep_s = 0.1
  backend = OpenAIBackend(model, max_batch=1)

  def cancel(i, n):
    raise Cancelled

  with pytest.raises(Cancelled):
    backend.run([_job(k=k) for k in range(20)], cancel)
  assert isinstance(backend.run([_job(k=30)], _ignore)[0], Made)
  assert len(endpoint.seen) < 10


@pytest.mark.parametrize(
  ("word", "error", "message"),
  [
    ("forbidden", ValueError, "refused by the endpoint: not that"),
    ("unknown", EndpointError, "HTTP 400: no such model"),
    ("busy", Refused, "HTTP 503: try later"),
    ("crowded", Refused, "HTTP 429: slow down"),
    ("elsewhere", EndpointError, "HTTP 302"),
    ("nonsense", EndpointError, "the answer has no image"),
    ("empty", EndpointError, "the answer has no image"),
    ("text", EndpointError, "the answer is no image"),
    ("small", EndpointError, "an image of 8x16 for 24x16"),
  ],
)
def test_a_failure_is_its_rows_own(model, word, error, message):
  backend = OpenAIBackend(model, max_batch=2)
  row, good = backend.run([_job(f"a {word} circle"), _job(k=1)], _ignore)
  assert isinstance(row, error) and message in str(row)
  assert isinstance(good, Made)


def test_a_crowded_endpoint_is_back_pressure(model):
  backend = OpenAIBackend(model, max_batch=2)
  rows = backend.run([_job("a crowded circle"), _job("a busy circle")], _ignore)
  assert [(row.reason, row.retry_s) for row in rows] == [
    (NoImageReason.QUEUE_FULL, 3.0),
    (NoImageReason.QUEUE_FULL, 0.0),
  ]
  with fake.serving(backend, ImagesConfig(width=24, height=16)) as (_, address, _):
    with ImageClient(address, config=ClientConfig(retries=0)) as client:
      failure = client.generate("a crowded circle", seed=0, width=24, height=16).result(9.0).failure
  assert (failure.reason, failure.fault, failure.retry_s) == (
    NoImageReason.QUEUE_FULL,
    "service",
    3.0,
  )


def test_what_an_endpoint_says_of_a_prompt_is_not_logged(model, caplog):
  with fake.serving(OpenAIBackend(model, max_batch=2), ImagesConfig(width=24, height=16)) as served:
    with ImageClient(served[1], config=ClientConfig(retries=0)) as client:
      failure = client.generate("quoted secret", seed=0, width=24, height=16).result(9.0).failure
  assert failure.reason is NoImageReason.INTERNAL and "secret" in failure.message
  lines = [record.getMessage() for record in caplog.records]
  assert any("answered HTTP 400" in line for line in lines)
  assert any("EndpointError of HTTPError at openai_backend.py:" in line for line in lines)
  formatted = "".join(map(telemetry.JsonFormatter().format, caplog.records))
  assert "secret" not in formatted


def test_a_key_that_a_header_cannot_hold_is_never_the_texts_fault(model, monkeypatch):
  monkeypatch.setenv("IMAGES_KEY", "secret\n")
  assert isinstance(OpenAIBackend(model, max_batch=1).run([_job()], _ignore)[0], Made)
  monkeypatch.setattr(openai_backend, "_authorization", lambda _: {"Authorization": "secret\n"})
  (row,) = OpenAIBackend(model, max_batch=1).run([_job()], _ignore)
  assert type(row) is EndpointError and "secret" not in str(row)
  for key in ("two\nlines", "pässwört"):
    monkeypatch.undo()
    monkeypatch.setenv("IMAGES_KEY", key)
    with pytest.raises(ValueError, match="printable ASCII") as error:
      OpenAIBackend(model, max_batch=1)
    assert key not in str(error.value)


def test_an_endpoint_that_is_gone_or_hangs_is_its_own_fault(endpoint, model):
  gone = OpenAIBackend(dataclasses.replace(model, url="http://127.0.0.1:1/v1"), max_batch=1)
  assert type(gone.run([_job()], _ignore)[0]) is EndpointError
  endpoint.sleep_s = 1.0
  slow = OpenAIBackend(dataclasses.replace(model, timeout_s=0.1), max_batch=1)
  row = slow.run([_job()], _ignore)[0]
  assert type(row) is EndpointError and "timed out" in str(row)


def test_through_the_service(model):
  config = ImagesConfig(width=24, height=16, batching=Batching(max_batch=4))
  with fake.serving(OpenAIBackend(model, max_batch=4), config) as (_, address, _):
    with ImageClient(address, config=ClientConfig(retries=2)) as client:
      futures = [
        client.generate("a circle", seed=5, width=24, height=16),
        client.edit(_source(6), "make it blue", seed=0),
        client.generate("a forbidden circle", seed=0, width=24, height=16),
        client.generate("a busy circle", seed=0, width=24, height=16),
      ]
      made, edited, forbidden, busy = (future.result(30.0) for future in futures)
      assert client.info().name == "flux + kontext"
  np.testing.assert_array_equal(made.image, _source(5))
  np.testing.assert_array_equal(edited.image, 255 - _source(6))
  assert (forbidden.failure.reason, forbidden.failure.fault) == (
    NoImageReason.INVALID_INSTRUCTION,
    "auditor",
  )
  assert (busy.failure.reason, busy.failure.fault) == (NoImageReason.QUEUE_FULL, "service")


def test_a_photograph_goes_at_one_of_the_endpoints_sizes_and_comes_back(endpoint, model):
  model = dataclasses.replace(model, sizes=((64, 64), (96, 64), (64, 96)))
  with fake.serving(OpenAIBackend(model, max_batch=4)) as (_, address, _):
    with ImageClient(address) as client:
      client.wait_ready(5.0)
      edited = client.edit(np.full((43, 64, 3), 9, np.uint8), "make it blue", seed=0).result(10.0)
      made = client.generate("a circle", seed=1, width=43, height=64).result(10.0)
  assert (edited.image == 246).all() and edited.image.shape == (43, 64, 3)
  assert edited.fit == "64x43>96x64 scale+pad"
  assert (made.image.shape, made.fit) == ((96, 64, 3), "43x64>64x96 drawn")
  assert [fields["size"] for _, _, fields in endpoint.seen[-2:]] == ["96x64", "64x96"]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(url=""), "is not an address such as"),
    (dict(url="file:///etc/passwd"), "is not an address such as"),
    (dict(generate="", edit=""), "name a model"),
    (dict(api_key_env="NOT_THERE"), "NOT_THERE is not set"),
  ],
)
def test_mistakes_are_said(model, change, message):
  with pytest.raises(ValueError, match=message):
    OpenAIBackend(dataclasses.replace(model, **change), max_batch=1)


def test_modes_are_those_that_have_a_model(model):
  only = OpenAIBackend(dataclasses.replace(model, edit=""), max_batch=1).info()
  assert (only.modes, only.steps, only.guidance, only.negative) == (("generate",), 28, 3.5, True)
