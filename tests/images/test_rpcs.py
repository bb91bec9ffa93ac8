# SPDX-License-Identifier: Apache-2.0
"""The methods of the proto on a bare channel: batches, progress, results by id, limits."""

import contextlib
import socket
import threading
import time
import urllib.request

import grpc
import numpy as np
import pytest

from auditdm_jax.images import batcher, codec, failures, server, stubs, telemetry
from auditdm_jax.images.config import Batching, ImagesConfig, Limits
from auditdm_jax.images.failures import NoImageReason
from tests.images import fake


@contextlib.contextmanager
def _stub(backend=None, config=None):
  with fake.serving(backend or fake.FakeBackend(), config) as (images, address, _):
    with grpc.insecure_channel(address) as channel:
      yield stubs.Stub(channel), images


def _request(text="x", **fields):
  fields = dict(request_id=text, seed=0, width=8, height=8) | fields
  return stubs.GenerateRequest(prompt=text, **fields)


def _item(text, **fields):
  return stubs.Item(generate=_request(text, **fields))


def _config(**fields):
  return ImagesConfig(width=8, height=8, **fields)


def _metric(images, name):
  return images.metrics.registry.get_sample_value(f"auditdm_images_{name}")


def _reason(call, request):
  with pytest.raises(grpc.RpcError) as error:
    result = call(request, timeout=10.0)
    list(result)  # Of a stream.
  return failures.from_call(error.value).reason


def _pixels(response):
  return codec.decode(response.image, max_pixels=1 << 20)


def test_every_item_of_a_batch_ends_by_itself():
  source = fake.pixels("source", 0, 4, 4)
  edit = stubs.EditRequest(
    request_id="e", instruction="blue", seed=1, source=codec.encode(source, stubs.PNG)
  )
  items = [_item("a"), _item("impossible"), stubs.Item(edit=edit), _item(""), stubs.Item()]
  with _stub(config=_config(batching=Batching(max_wait_ms=50.0))) as (stub, _):
    got = {i.index: i for i in stub.generate_batch(stubs.BatchRequest(items=items), timeout=10.0)}
  assert sorted(got) == [0, 1, 2, 3, 4]
  np.testing.assert_array_equal(_pixels(got[0].response), fake.pixels("a", 0))
  np.testing.assert_array_equal(_pixels(got[2].response), fake.pixels("blue", 1, 4, 4, source))
  names = {i: got[i].error.reason for i in (1, 3, 4)}
  assert names == {
    1: stubs.REASON_NUMBERS["INVALID_INSTRUCTION"],
    3: stubs.REASON_NUMBERS["INVALID_REQUEST"],  # No text, but first of all no id.
    4: stubs.REASON_NUMBERS["INVALID_REQUEST"],
  }
  assert [got[i].request_id for i in (0, 1, 2)] == ["a", "impossible", "e"]


def test_items_are_sent_when_they_are_done():
  backend = fake.FakeBackend(0.5)
  with _stub(backend, _config(batching=Batching(max_batch=1))) as (stub, _):
    items = [_item(str(i)) for i in range(4)]
    times = []
    for _ in stub.generate_batch(stubs.BatchRequest(items=items), timeout=10.0):
      times.append(time.monotonic())
  assert times[-1] - times[0] > 0.3


def test_a_batch_that_nobody_reads_holds_few_answers():
  backend = fake.FakeBackend()
  items = [_item(str(i), width=512, height=512) for i in range(60)]  # 0.8 MB each
  with _stub(backend, _config(batching=Batching(max_batch=2))) as (stub, _):
    warm = len(backend.calls)
    call = stub.generate_batch(stubs.BatchRequest(items=items), timeout=30.0)
    time.sleep(1.5)
    assert 4 <= sum(map(len, backend.calls[warm:])) <= 16
    assert sorted(i.index for i in call) == list(range(60)), "who reads on gets the rest"


def test_a_batch_call_that_is_cut_leaves_the_queue():
  backend = fake.FakeBackend(0.2)
  with _stub(backend, _config(batching=Batching(max_batch=1))) as (stub, _):
    call = stub.generate_batch(stubs.BatchRequest(items=[_item(str(i)) for i in range(9)]))
    next(call)
    call.cancel()
    stub.generate(_request("next"), timeout=10.0)
  assert len([c for c in backend.calls if c != ["warm-up"] and c != [""]]) <= 4


def test_watch_tells_queue_steps_and_image():
  backend = fake.FakeBackend(steps=4)
  with _stub(backend, _config(batching=Batching(max_batch=1))) as (stub, _):
    backend.sleep_s = 2.0
    other = stub.generate.future(_request("other"))
    assert fake.wait_for(lambda: ["other"] in backend.calls)
    events = list(stub.watch(stubs.Item(generate=_request("mine")), timeout=20.0))
    assert other.result(5.0)
    again = list(stub.watch(stubs.Item(generate=_request("mine")), timeout=10.0))
  kinds = [e.WhichOneof("event") for e in events]
  assert kinds[0] == "queued" and kinds[-1] == "result" and set(kinds[1:-1]) == {"step"}
  assert events[0].queued.position == 0
  steps = [(e.step.done, e.step.of) for e in events[1:-1]]
  # The last one may go by unseen: the image follows at once.
  assert [s for s in steps if s[1] and s[0] < 4] == [(1, 4), (2, 4), (3, 4)]
  np.testing.assert_array_equal(_pixels(events[-1].result), fake.pixels("mine", 0))
  assert [e.WhichOneof("event") for e in again] == ["result"] and again[0].result.timings.cached


def test_watch_tells_places_that_change():
  backend = fake.FakeBackend()
  with _stub(backend, _config(batching=Batching(max_batch=1))) as (stub, images):
    backend.sleep_s = 1.0
    # A call whose future is dropped is cancelled.
    calls = [stub.generate.future(_request(f"before {i}")) for i in range(3)]
    assert fake.wait_for(lambda: _metric(images, "queue_depth") == 2)
    events = list(stub.watch(stubs.Item(generate=_request("mine")), timeout=20.0))
    assert all(c.done() for c in calls)
  places = [e.queued.position for e in events if e.WhichOneof("event") == "queued"]
  assert places == [2, 1, 0]


def test_watch_refuses_as_generate_does():
  with _stub() as (stub, _):
    assert _reason(stub.watch, stubs.Item(generate=_request("impossible"))) is (
      NoImageReason.INVALID_INSTRUCTION
    )
    assert _reason(stub.watch, stubs.Item()) is NoImageReason.INVALID_REQUEST


def test_a_result_is_found_by_its_id():
  backend = fake.FakeBackend()
  with _stub(backend) as (stub, _):
    made = stub.generate(_request("a"), timeout=10.0)
    again = stub.get_result(stubs.GetResultRequest(request_id="a"), timeout=10.0)
    assert again.timings.cached and again.sha256 == made.sha256 and again.seed == made.seed
    backend.sleep_s = 1.0
    call = stub.generate.future(_request("under way"))
    time.sleep(0.3)
    waited = stub.get_result(stubs.GetResultRequest(request_id="under way"), timeout=10.0)
    np.testing.assert_array_equal(_pixels(waited), fake.pixels("under way", 0))
    assert call.result(5.0).sha256 == waited.sha256
    assert (
      _reason(stub.get_result, stubs.GetResultRequest(request_id="no")) is NoImageReason.UNKNOWN_ID
    )
  assert sum(call.count("under way") for call in backend.calls) == 1


@pytest.mark.parametrize("length", [0, 65, 20_000])
def test_a_result_is_not_looked_for_under_what_is_no_id(length):
  with _stub() as (stub, _):
    request = stubs.GetResultRequest(request_id="x" * length)
    assert _reason(stub.get_result, request) is NoImageReason.INVALID_REQUEST


def test_model_info():
  with _stub(fake.FakeBackend(steps=7)) as (stub, _):
    info = stub.get_model_info(stubs.GetModelInfoRequest(), timeout=10.0)
    made = stub.generate(_request("a"), timeout=10.0)
  assert (info.name, info.revision, info.steps, info.guidance) == ("fake", "r1", 7, 2.5)
  assert list(info.modes) == ["generate", "edit", "sham"]
  assert made.model == info.identity


def test_the_identity_follows_all_that_decides_the_pixels():
  infos = [fake.FakeBackend(revision=r).info() for r in ("a", "a", "b")]
  assert infos[0].identity == infos[1].identity != infos[2].identity


@pytest.mark.parametrize("encoding", list(codec.LOSSLESS))
def test_the_encoding_of_an_answer_can_be_chosen(encoding):
  with _stub() as (stub, _):
    options = stubs.Options(encoding=encoding)
    response = stub.generate(_request("a", width=200, height=200, options=options), timeout=10.0)
  assert response.image.encoding == encoding
  np.testing.assert_array_equal(_pixels(response), fake.pixels("a", 0, 200, 200))


def test_a_sham_changes_nothing_and_says_nothing():
  source = codec.encode(fake.pixels("s", 0))
  with _stub() as (stub, _):
    sham = stubs.EditRequest(request_id="s", seed=0, source=source, sham=True)
    assert stub.edit(sham, timeout=10.0).image.data
    sham.instruction = "but do"
    assert _reason(stub.edit, sham) is NoImageReason.INVALID_REQUEST


@pytest.mark.parametrize(
  "fields, reason",
  [
    (dict(request_id=""), NoImageReason.INVALID_REQUEST),
    (dict(request_id="x" * 65), NoImageReason.INVALID_REQUEST),
    (dict(width=0), NoImageReason.INVALID_REQUEST),
    (dict(width=2**31, height=2**31), NoImageReason.INVALID_REQUEST),
    (dict(options=stubs.Options(steps=101)), NoImageReason.INVALID_REQUEST),
    (
      dict(width=1024, height=1024, options=stubs.Options(steps=100)),
      NoImageReason.INVALID_REQUEST,
    ),
    (dict(options=stubs.Options(guidance=float("nan"))), NoImageReason.INVALID_REQUEST),
    (dict(options=stubs.Options(guidance=1e9)), NoImageReason.INVALID_REQUEST),
    (dict(options=stubs.Options(encoding=stubs.JPEG)), NoImageReason.INVALID_REQUEST),
    (dict(options=stubs.Options(encoding=99)), NoImageReason.INVALID_REQUEST),
    (dict(options=stubs.Options(negative_prompt="\0")), NoImageReason.INVALID_PROMPT),
  ],
)
def test_limits(fields, reason):
  backend = fake.FakeBackend(steps=4)
  with _stub(backend) as (stub, _):
    calls = len(backend.calls)
    assert _reason(stub.generate, _request("x", **fields)) is reason
    assert len(backend.calls) == calls, "refused before the backend"


@pytest.mark.parametrize(
  "options",
  [stubs.Options(steps=3), stubs.Options(guidance=1.0), stubs.Options(negative_prompt="x")],
)
def test_what_a_model_does_not_have_is_refused(options):
  with _stub() as (stub, _):
    assert _reason(stub.generate, _request(options=options)) is NoImageReason.UNSUPPORTED


def test_defaults_and_options_of_a_request_share_an_image_if_equal():
  backend = fake.FakeBackend(steps=4)
  with _stub(backend) as (stub, _):
    stub.generate(_request("a"), timeout=10.0)
    explicit = stubs.Options(steps=4, guidance=2.5)
    assert stub.generate(_request("a", options=explicit), timeout=10.0).timings.cached
    other = stubs.Options(steps=5)
    assert _reason(stub.generate, _request("a", options=other)) is NoImageReason.ID_REUSED


def test_queued_bytes_are_bounded():
  backend = fake.FakeBackend()
  limits = Limits(max_queue_mb=0.5)
  with _stub(backend, _config(limits=limits, batching=Batching(max_batch=1))) as (stub, images):
    backend.go.clear()
    source = codec.encode(np.zeros((256, 256, 3), np.uint8))  # 0.19 MB

    def edit(i):
      request = stubs.EditRequest(request_id=str(i), instruction="x", seed=0, source=source)
      return stub.edit.future(request)

    warm, calls = len(backend.calls), [edit(0)]
    assert fake.wait_for(lambda: len(backend.calls) > warm), "it runs and is queued no more"
    assert _metric(images, "queue_bytes") == 0
    calls += [edit(i) for i in range(1, 6)]
    _first_done(calls, 3)
    assert 0 < _metric(images, "queue_bytes") <= 0.5 * 2**20
    backend.go.set()
    reasons = [failures.from_call(c.exception()).reason for c in calls if c.exception()]
  assert reasons == [NoImageReason.QUEUE_FULL] * 3


def _sources(n):
  """Edits whose sources have to be decoded."""
  source = codec.encode(fake.pixels("source", 0, 64, 64), stubs.PNG)  # 12 kB, as its pixels.
  return [
    stubs.EditRequest(request_id=str(i), instruction="x", seed=0, source=source) for i in range(n)
  ]


def _first_done(calls, n):
  until = time.monotonic() + 10.0
  while sum(c.done() for c in calls) < n and time.monotonic() < until:
    time.sleep(0.01)
  return [c for c in calls if c.done()]


@pytest.mark.parametrize("limits", [Limits(max_queue=3), Limits(max_queue_mb=0.04)])
def test_sources_that_wait_to_be_decoded_are_bounded_and_hold_up_nothing_else(limits, monkeypatch):
  hung, decode = threading.Event(), codec.decode

  def hang(image, **limit):
    hung.wait(20.0)
    return decode(image, **limit)

  with _stub(config=_config(limits=limits)) as (stub, _):
    monkeypatch.setattr(codec, "decode", hang)
    calls = [stub.edit.future(request) for request in _sources(6)]
    png = stubs.Options(encoding=stubs.PNG)
    other = stub.generate(_request("a", width=200, height=200, options=png), timeout=10.0)
    assert other.image.encoding == stubs.PNG
    refused = _first_done(calls, 3)
    assert [failures.from_call(c.exception()).reason for c in refused] == [
      NoImageReason.QUEUE_FULL
    ] * 3
    helpers = [t for t in threading.enumerate() if t.name in ("encoder", "decoder")]
    assert len(helpers) >= 4 and all(t.daemon for t in helpers), "the process could not end"
    hung.set()
    assert all(c.result(10.0).image.data for c in calls if c not in refused)
    assert stub.edit(_sources(7)[6], timeout=10.0).image.data, "there is room again"


def test_a_full_queue_says_when_to_come_again():
  backend = fake.FakeBackend(0.2)
  config = _config(limits=Limits(max_queue=1), batching=Batching(max_batch=1))
  with _stub(backend, config) as (stub, _):
    calls = [stub.generate.future(_request(str(i))) for i in range(4)]
    refused = [failures.from_call(c.exception()) for c in calls if c.exception()]
  assert {f.reason for f in refused} == {NoImageReason.QUEUE_FULL}
  assert all(0.0 < f.retry_s <= 2.0 for f in refused)


def test_a_running_batch_ends_early_when_nobody_waits():
  backend = fake.FakeBackend(steps=20)
  config = _config(batching=Batching(max_wait_ms=200.0))  # Both in one batch.
  with _stub(backend, config) as (stub, images):
    backend.sleep_s = 4.0
    calls = [stub.generate.future(_request(str(i))) for i in range(2)]
    time.sleep(0.6)
    calls[0].cancel()
    time.sleep(0.2)
    assert _metric(images, "cancelled_batches_total") == 0, "the other one still waits"
    calls[1].cancel()
    start = time.monotonic()
    time.sleep(0.4)
    backend.sleep_s = 0.0
    stub.generate(_request("next"), timeout=10.0)
    assert time.monotonic() - start < 2.0
    assert _metric(images, "cancelled_batches_total") >= 1
    # Who asks again begins anew.
    np.testing.assert_array_equal(
      _pixels(stub.generate(_request("0"), timeout=10.0)), fake.pixels("0", 0)
    )


def test_a_joined_caller_keeps_the_batch_alive_when_the_first_one_leaves():
  backend = fake.FakeBackend(steps=10)
  with _stub(backend) as (stub, _):
    backend.sleep_s = 0.5
    first = stub.generate.future(_request("a"))
    time.sleep(0.1)
    second = stub.generate.future(_request("a"))
    time.sleep(0.1)
    first.cancel()
    assert second.result(5.0).request_id == "a"
  assert sum(call.count("a") for call in backend.calls) == 1


def test_what_is_learnt_of_batches_is_bounded(monkeypatch):
  monkeypatch.setattr(batcher, "_KNOWN_KEYS", 8)
  with _stub(fake.FakeBackend(steps=1)) as (stub, images):
    for i in range(20):
      stub.generate(_request(f"{i}", options=stubs.Options(guidance=i / 10)), timeout=10.0)
    guidances = [key[4] for key in images._batcher._batch_s]
  assert guidances == [i / 10 for i in range(12, 20)]


def test_metrics_are_on_a_port_of_their_own_and_say_no_prompt():
  port = fake.free_port()
  with _stub(config=_config(metrics_port=port)) as (stub, _):
    stub.generate(_request("secret words"), timeout=10.0)
    stub.generate(_request("secret words"), timeout=10.0)
    _reason(stub.generate, _request("impossible secret"))
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5.0).read().decode()
  assert "secret" not in text
  rows = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
  ok = 'auditdm_images_requests_total{code="OK",method="Generate",reason=""}'
  bad = (
    'auditdm_images_requests_total{code="INVALID_ARGUMENT",method="Generate",'
    'reason="INVALID_INSTRUCTION"}'
  )
  assert (float(rows[ok]), float(rows[bad])) == (2.0, 1.0)
  assert float(rows["auditdm_images_cache_hits_total"]) == 1.0
  assert float(rows["auditdm_images_ready"]) == 1.0
  with pytest.raises(OSError):
    urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=1.0)


def test_a_backends_error_is_logged_without_the_prompt_it_quotes(caplog):
  class Quotes(fake.FakeBackend):
    def run(self, jobs, progress):
      if any("secret" in j.text for j in jobs):
        raise LookupError(f"no words {[j.text for j in jobs]}")
      return super().run(jobs, progress)

  with _stub(Quotes()) as (stub, _):
    assert (
      _reason(stub.generate, _request("secret words", request_id="a")) is NoImageReason.INTERNAL
    )
    hostile = 'x\x1b[2J secret"'
    assert _reason(stub.generate, _request("secret", request_id=hostile)) is NoImageReason.INTERNAL
  formatted = "".join(map(telemetry.JsonFormatter().format, caplog.records))
  assert "RuntimeError of LookupError at test_rpcs.py:" in formatted and "worker.py:" in formatted
  assert "secret" not in formatted


def test_a_taken_metrics_port_is_a_start_error():
  port = fake.free_port()
  with _stub(config=_config(metrics_port=port)):
    with pytest.raises(server.StartError, match=f"cannot listen on 127.0.0.1:{port} for metrics"):
      with _stub(config=_config(metrics_port=port)):
        pass


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_ipv6_address_is_taken_with_and_without_brackets(host):
  if not socket.has_ipv6:
    pytest.skip("no IPv6")
  config = _config(host=host, metrics_port=fake.free_port(), metrics_host=host)
  with fake.serving(fake.FakeBackend(), config) as (_, address, _):
    assert address.startswith("[::1]:")
    with grpc.insecure_channel(address) as channel:
      assert stubs.Stub(channel).generate(_request("a"), timeout=5.0).image.data
    url = f"http://[::1]:{config.metrics_port}/metrics"
    assert urllib.request.urlopen(url, timeout=5.0).status == 200


@pytest.mark.parametrize(
  "error, message",
  [
    (ValueError("no such model"), "^no such model$"),
    (RuntimeError("sizes differ"), "^the backend cannot be loaded: RuntimeError: sizes differ$"),
  ],
)
def test_a_backend_that_cannot_be_loaded_is_a_start_error(error, message):
  def fail(_):
    raise error

  with pytest.raises(server.StartError, match=message):
    with fake.serving(None, warm=fail):
      pass


def test_reflection_is_an_option():
  pytest.importorskip("grpc_reflection")
  from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

  def services(config):
    with fake.serving(fake.FakeBackend(), config) as (_, address, _):
      with grpc.insecure_channel(address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        answer = next(stub.ServerReflectionInfo(iter([request])))
        return [s.name for s in answer.list_services_response.service]

  assert stubs.SERVICE.full_name in services(_config(reflection=True))
  with pytest.raises(grpc.RpcError):
    services(_config())


def test_malformed_messages_break_nothing():
  with fake.serving(fake.FakeBackend()) as (_, address, _):
    with grpc.insecure_channel(address) as channel:
      for name in ("Generate", "Edit", "GetModelInfo"):
        call = channel.unary_unary(f"/{stubs.SERVICE.full_name}/{name}")
        with pytest.raises(grpc.RpcError):
          call(b"\xff\xff\xff garbage", timeout=5.0)
      assert stubs.Stub(channel).generate(_request("a"), timeout=5.0).image.data


def test_calls_from_many_threads_get_their_own_images():
  with _stub(config=_config(batching=Batching(max_batch=4))) as (stub, _):
    wrong = []

    def ask(i):
      response = stub.generate(_request(f"t{i}", seed=i), timeout=10.0)
      if not np.array_equal(_pixels(response), fake.pixels(f"t{i}", i)):
        wrong.append(i)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(40)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
  assert not wrong
