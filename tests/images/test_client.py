# SPDX-License-Identifier: Apache-2.0
"""The client against servers that are slow, dead, damaged or different."""

import hashlib
import itertools
import json
import logging
import threading
import time

import grpc
import numpy as np
from PIL import Image, PngImagePlugin
import pytest

from auditdm_jax.images import client as client_lib
from auditdm_jax.images import codec, locality, replicas, server, stubs, telemetry
from auditdm_jax.images.backend import Made
from auditdm_jax.images.client import ImageClient
from auditdm_jax.images.config import Batching, ClientConfig, ImagesConfig, Security
from auditdm_jax.images.disk_cache import DiskCache
from auditdm_jax.images.failures import RULES, NoImageReason, Refused
from auditdm_jax.images.requests import Edit, Generate, Options
from tests.images import fake, rogue

SIZE = dict(width=8, height=8)


def _generate(i, **fields):
  return Generate(f"p{i}", i, 8, 8, **fields)


def test_map_unordered_gives_every_request_its_image():
  backend = fake.FakeBackend()
  with fake.serving(backend) as (_, address, _), ImageClient(address) as client:
    pairs = list(client.map_unordered([_generate(i) for i in range(50)]))
  assert sorted(r.seed for r, _ in pairs) == list(range(50))
  for request, result in pairs:
    np.testing.assert_array_equal(result.image, fake.pixels(request.prompt, request.seed))


def test_map_unordered_takes_no_more_than_its_depth_ahead():
  taken = itertools.count()
  requests = (_generate(next(taken)) for _ in range(30))
  with fake.serving(fake.FakeBackend()) as (_, address, _), ImageClient(address) as client:
    for done, _ in enumerate(client.map_unordered(requests, depth=4)):
      assert next(taken) - done <= 6
      taken = itertools.count(next(taken) - 1)


def test_a_slow_request_does_not_hold_up_the_others():
  backend = fake.FakeBackend()
  config = ImagesConfig(**SIZE, batching=Batching(max_batch=1))
  with fake.serving(backend, config) as (_, address, _), ImageClient(address) as client:
    requests = [Generate("impossible", 0, 8, 8), _generate(1), _generate(2)]
    results = [result for _, result in client.map_unordered(requests)]
  assert sum(r.image is not None for r in results) == 2


def test_prefetch_keeps_the_order_and_the_depth():
  backend = fake.FakeBackend(0.02)
  with fake.serving(backend) as (_, address, _), ImageClient(address) as client:
    seeds = []
    for request, result in client.prefetch((_generate(i) for i in range(12)), depth=2):
      assert result.failure is None
      seeds.append(request.seed)
      if len(seeds) == 4:
        time.sleep(0.3)
        made = {t for call in backend.calls for t in call}
        assert "p5" in made and "p8" not in made
  assert seeds == list(range(12))


def test_one_image_ahead_hides_the_service_behind_the_learner():
  """While it looks at an image the next one is made; without prefetch none is."""
  backend = fake.FakeBackend()
  made = lambda: sum(map(len, backend.calls))  # noqa: E731
  with fake.serving(backend) as (_, address, _), ImageClient(address) as client:
    for depth in (0, 1):
      start, requests = made(), [_generate(10 * depth + i) for i in range(10)]
      for n, (_, result) in enumerate(client.prefetch(requests, depth=depth)):
        assert result.failure is None
        want = start + min(n + 1 + depth, 10)
        if depth:
          fake.wait_for(lambda: made() >= want)  # noqa: B023
        else:
          time.sleep(0.08)
        assert made() == want, (depth, n)


def test_images_are_found_on_disk_the_next_time(tmp_path):
  cache, backend = str(tmp_path), fake.FakeBackend()
  with fake.serving(backend) as (_, address, _):
    with ImageClient(address, config=ClientConfig(cache=cache)) as client:
      client.wait_ready(5.0)
      first = client.generate("a", seed=0, **SIZE).result(5.0)
    calls = len(backend.calls)
    with ImageClient(address, config=ClientConfig(cache=cache)) as client:
      client.wait_ready(5.0)
      # The id is the caller's and no part of the content.
      again = client.generate("a", seed=0, request_id="mine", **SIZE).result(5.0)
      other = client.generate("a", seed=1, **SIZE).result(5.0)
  np.testing.assert_array_equal(again.image, first.image)
  assert again.timings.cached and again.timings.tries == 0 and len(backend.calls) == calls + 1
  assert not np.array_equal(other.image, first.image)


def test_another_model_finds_nothing_of_the_first_on_disk(tmp_path):
  for revision, fresh in (("r1", 1), ("r2", 1), ("r1", 0)):
    backend = fake.FakeBackend(revision=revision)
    with fake.serving(backend) as (_, address, _):
      with ImageClient(address, config=ClientConfig(cache=str(tmp_path))) as client:
        client.wait_ready(5.0)
        assert client.generate("a", seed=0, **SIZE).result(5.0).image is not None
    assert sum(call.count("a") for call in backend.calls) == fresh


@pytest.mark.parametrize("damage", [b"", b"\x89PNG\r\n\x1a\n", None])
def test_a_damaged_file_is_made_again(tmp_path, damage):
  cache, image = DiskCache(tmp_path), fake.pixels("a", 0)
  cache.put("model", "ab12", image)
  np.testing.assert_array_equal(cache.get("model", "ab12", size=(8, 8)), image)
  (path,) = tmp_path.rglob("*.png")
  path.write_bytes(path.read_bytes()[:-40] if damage is None else damage)
  assert cache.get("model", "ab12", size=(8, 8)) is None and not path.exists()


def _planted(path, image):
  """A file with its own right hash, as anyone who can write to the folder could leave it."""
  info = PngImagePlugin.PngInfo()
  info.add_text("sha256", hashlib.sha256(image.tobytes()).hexdigest())
  Image.fromarray(image).save(path, "PNG", pnginfo=info)


def test_a_file_of_another_size_is_made_again(tmp_path, monkeypatch):
  cache = DiskCache(tmp_path)
  for bound in (None, 10):  # Pillow calls one a bomb that has more than twice as many pixels.
    cache.put("model", "ab12", fake.pixels("a", 0))
    (path,) = tmp_path.rglob("*.png")
    _planted(path, fake.pixels("b", 0, 30, 20))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", bound)
    assert cache.get("model", "ab12", size=(8, 8)) is None and not path.exists()


def test_a_disk_that_fails_costs_no_image_and_says_so_once(tmp_path, caplog):
  folder = tmp_path / "file"
  folder.touch()
  with fake.serving(fake.FakeBackend()) as (_, address, _):
    with ImageClient(address, config=ClientConfig(cache=str(folder / "cache"))) as client:
      client.wait_ready(5.0)
      results = [client.generate("a", seed=i, **SIZE).result(5.0) for i in range(3)]
  assert [r.failure for r in results] == [None] * 3
  assert sum("not kept" in r.message for r in caplog.records) == 1


def test_a_model_cannot_name_a_path(tmp_path):
  with pytest.raises(ValueError, match="not a name"):
    DiskCache(tmp_path).get("../../etc", "ab", size=(8, 8))


def test_equal_options_are_equal_requests():
  base = _generate(0)
  assert base.digest == _generate(0, id="other").digest
  assert base.digest != _generate(0, options=Options(deterministic=True)).digest
  source = fake.pixels("s", 0)
  edit, sham = Edit(source, "", 0), Edit(source, "", 0, sham=True)
  assert edit.digest != sham.digest
  assert edit.digest != Edit(source[::-1], "", 0).digest


def test_a_digest_does_not_depend_on_the_types_of_numbers():
  """Else the disk cache misses, and the service makes an image twice."""
  plain = Generate("a", 3, 8, 8, Options(steps=2, guidance=3.0))
  arrays = Generate("a", np.int64(3), np.uint8(8), np.int32(8), Options(np.int64(2), 3))
  assert arrays.digest == plain.digest
  source = fake.pixels("s", 0)
  assert Edit(source, "a", np.uint64(3)).digest == Edit(source, "a", 3).digest


@pytest.mark.parametrize(
  "fields", [dict(width=-5), dict(height=2**33), dict(seed=-1), dict(seed=2**64), dict(steps=-1)]
)
def test_what_no_message_can_carry_is_the_callers_bug_at_once(fields):
  steps = fields.pop("steps", 0)
  with pytest.raises(ValueError, match="unsigned"):
    Generate(**(dict(prompt="a", seed=0, **SIZE) | fields), options=Options(steps=steps))


def test_a_request_that_cannot_be_written_is_not_the_replicas_fault():
  with fake.serving(fake.FakeBackend()) as (_, address, _), ImageClient(address) as client:
    (replica,) = client._replicas.all
    broken = Generate("a", 0, 8, 8, id="\ud800")
    assert client.submit(broken).result(5.0).failure.reason is NoImageReason.INVALID_PROMPT
    object.__setattr__(broken, "width", -5)
    object.__setattr__(broken, "id", "a")
    assert client.submit(broken).result(5.0).failure.reason is NoImageReason.PROTOCOL
    assert replica.rank(time.monotonic())[0] is False and replica.outstanding == 0


def test_replicas_with_different_models_are_refused():
  backends = fake.FakeBackend(), fake.FakeBackend(revision="r2")
  with fake.serving(backends[0]) as (_, a, _), fake.serving(backends[1]) as (_, b, _):
    with ImageClient([a, b]) as client, pytest.raises(ConnectionError, match="different models"):
      client.wait_ready(5.0)


def test_work_goes_where_least_is_outstanding():
  """A server that is far faster gets more than twice the work, and none is idle."""
  fast, slow = fake.FakeBackend(row_s=0.005), fake.FakeBackend(row_s=0.2)
  config = ImagesConfig(**SIZE, batching=Batching(max_batch=2, max_wait_ms=0.0))
  with fake.serving(fast, config) as (_, a, _), fake.serving(slow, config) as (_, b, _):
    with ImageClient([b, a], config=ClientConfig(max_in_flight=4)) as client:
      done = list(client.map_unordered([_generate(i) for i in range(150)]))
  assert all(r.image is not None for _, r in done)
  counts = [sum(map(len, x.calls)) for x in (fast, slow)]
  assert counts[0] > 2 * counts[1] > 6  # With three of the warm-up.


def test_outstanding_work_is_weighed_by_pixels_and_steps():
  nobody = lambda request, context, number: None  # noqa: E731
  with rogue.scripted(nobody) as a, rogue.scripted(nobody) as b:
    pool = replicas.Replicas([a, b], Security())
    while not all(r.serving for r in pool.all):
      time.sleep(0.01)
    big = Generate("x", 0, 512, 512, Options(steps=8))
    first = pool.acquire(big.cost)
    others = [pool.acquire(Generate("x", 0, 64, 64, Options(steps=8)).cost) for _ in range(8)]
    assert all(o is not first for o in others)
    pool.close()


def test_a_replica_that_drains_gets_no_more_and_one_that_is_back_gets_work_at_once():
  dead_port = fake.free_port()
  with fake.serving(fake.FakeBackend()) as (_, address, _):
    with ImageClient(
      [f"127.0.0.1:{dead_port}", address], config=ClientConfig(max_in_flight=2)
    ) as client:
      results = [client.submit(_generate(i)).result(5.0) for i in range(10)]
      assert all(r.failure is None for r in results)
      assert sum(r.timings.tries for r in results) <= 12
      config = ImagesConfig(**SIZE, port=dead_port)
      back = fake.FakeBackend()
      with fake.serving(back, config):
        until = time.monotonic() + 5.0
        while client._replicas.all[0].serving is not True and time.monotonic() < until:
          time.sleep(0.02)
        done = list(client.map_unordered([_generate(i) for i in range(100, 140)]))
      assert all(r.failure is None for _, r in done)
      assert sum(map(len, back.calls)) > 5


def test_a_machine_that_is_gone_without_a_word_is_left_after_two_pings(monkeypatch):
  faster = {"grpc.keepalive_time_ms": 300, "grpc.http2.ping_timeout_ms": 300}
  options = tuple((name, faster.get(name, value)) for name, value in replicas._OPTIONS)
  monkeypatch.setattr(replicas, "_OPTIONS", options)
  monkeypatch.setattr(server, "_PING_MS", 100)
  backend = fake.FakeBackend()
  with (
    fake.serving(backend) as (_, a, _),
    fake.serving(fake.FakeBackend()) as (_, b, _),
    rogue.Proxy(a) as proxy,
    ImageClient([proxy.address, b], config=ClientConfig(max_in_flight=2)) as client,
  ):
    client.wait_ready(5.0)
    backend.sleep_s = 0.3
    futures = [client.submit(_generate(i)) for i in range(4)]
    time.sleep(0.1)
    proxy.frozen = True
    start = time.monotonic()
    assert all(f.result(20.0).failure is None for f in futures)
    assert time.monotonic() - start < 18.0


def test_a_replica_that_hangs_costs_time_and_no_image():
  """Its health says SERVING all the while: only the silence tells."""
  over, stuck = threading.Event(), []

  def hang(request, context, number):
    stuck.append(number)
    over.wait(60.0)
    context.abort(grpc.StatusCode.UNAVAILABLE, "over")

  with rogue.scripted(hang) as a, fake.serving(fake.FakeBackend()) as (_, b, _):
    with ImageClient([a, b], config=ClientConfig(deadline_s=6.0, max_in_flight=6)) as client:
      for wave in range(2):
        futures = [client.submit(_generate(20 * wave + i)) for i in range(20)]
        assert [f.result(30.0).failure for f in futures] == [None] * 20
        if wave == 0:
          assert len(stuck) >= 1
          first = len(stuck)
      assert len(stuck) <= first + 1, "a replica that has failed is asked one thing at a time"
      over.set()


def test_a_server_that_says_half_the_time_is_too_little_is_given_all_of_it():
  left = []

  def answer(request, context, number):
    left.append(context.time_remaining())
    if left[-1] < 5.5:
      refused = Refused(NoImageReason.DEADLINE, "expected to need more")
      context.set_trailing_metadata(refused.metadata)
      context.abort(RULES[refused.reason].code, refused.message)
    image = fake.pixels(request.prompt, request.seed)
    return stubs.ImageResponse(
      request_id=request.request_id,
      image=codec.encode(image),
      sha256=hashlib.sha256(image).digest(),
    )

  with rogue.scripted(answer) as a, rogue.scripted(answer) as b:
    with ImageClient([a, b], config=ClientConfig(deadline_s=10.0)) as client:
      assert client.submit(_generate(0)).result(10.0).failure is None
  assert len(left) == 2 and left[0] < 5.5 < left[1]


def test_only_the_deadline_ends_the_waiting_for_a_service_that_comes_back(monkeypatch):
  monkeypatch.setattr(client_lib, "_MAX_BACKOFF_S", 0.0)

  def answer(request, context, number):
    if number <= 150:
      context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")
    context.abort(grpc.StatusCode.UNAUTHENTICATED, "back")

  with rogue.scripted(answer) as address, ImageClient(address) as client:
    assert client.submit(_generate(0)).result(20.0).failure.message.startswith("back (try 15")


@pytest.mark.parametrize(
  "address", ["", [], "a", "http://a:1", "a:1/", "a:1,", "a:b", "a:1 b:2", "a:65536", "::1:1"]
)
def test_an_address_that_is_none_is_said_at_once(address):
  with pytest.raises(ValueError, match="such as 127.0.0.1:8500"):
    ImageClient(address)


def test_addresses_may_have_spaces_between():
  with ImageClient("a-b.c_d:1, [::1]:2 ,unix:/tmp/x y") as client:
    assert [r.address for r in client._replicas.all] == ["a-b.c_d:1", "[::1]:2", "unix:/tmp/x y"]


def test_less_than_no_retries_are_a_mistake():
  with pytest.raises(ValueError, match="retries"):
    ImageClient("127.0.0.1:1", config=ClientConfig(retries=-1))


def test_a_damaged_image_is_asked_for_again_and_then_given_up():
  def answer(request, context, number):
    image = fake.pixels("x", 0)
    return stubs.ImageResponse(
      request_id=request.request_id, image=codec.encode(image), sha256=b"other"
    )

  with rogue.scripted(answer) as address, ImageClient(address) as client:
    failure = client.submit(_generate(0)).result(10.0).failure
  assert failure.reason is NoImageReason.PROTOCOL and "(try 2)" in failure.message
  assert failure.fault == "service"


def test_what_is_wrong_with_a_text_reads_the_same_at_any_try():
  """It is recorded, and a run whose service was killed must leave the same records."""
  calls = []

  def answer(request, context, number):
    calls.append(number)
    if number in (2, 3):
      context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")
    refused = Refused(NoImageReason.INVALID_INSTRUCTION, "row one is taken")
    context.set_trailing_metadata(refused.metadata)
    context.abort(RULES[refused.reason].code, refused.message)

  with rogue.scripted(answer) as address, ImageClient(address) as client:
    failures = [client.submit(_generate(i)).result(20.0).failure for i in range(2)]
  assert calls == [1, 2, 3, 4], "asking again because of the text cannot help"
  assert failures[0] == failures[1] and failures[0].message == "row one is taken"


@pytest.mark.parametrize("size", [(1 << 15, 1 << 15), (0, 0)])
def test_a_bomb_from_the_server_is_a_failure(size):
  def answer(request, context, number):
    image = stubs.Image(encoding=stubs.PNG, width=size[0], height=size[1], data=b"\x89PNG")
    return stubs.ImageResponse(request_id=request.request_id, image=image)

  with rogue.scripted(answer) as address, ImageClient(address) as client:
    assert client.submit(_generate(0)).result(10.0).failure.reason is NoImageReason.PROTOCOL


def test_over_a_network_pixels_are_halved_and_stay_the_same(monkeypatch):
  seen = []

  class Spy(fake.FakeBackend):
    def run(self, jobs, progress):
      seen.extend(j.source for j in jobs if j.source is not None)
      return super().run(jobs, progress)

  source = np.zeros((160, 160, 3), np.uint8)
  source[40:80] = 200
  with fake.serving(Spy()) as (_, address, _), ImageClient(address) as client:
    monkeypatch.setattr(client._replicas.all[0], "_near", False)
    result = client.edit(source, "x", seed=0).result(5.0)
  np.testing.assert_array_equal(seen[-1], source)
  np.testing.assert_array_equal(result.image, fake.pixels("x", 0, 160, 160, source))


def test_few_pixels_are_sent_raw_however_many_steps_are_asked_for(monkeypatch):
  seen = []

  def answer(request, context, number):
    seen.extend([request.source.encoding, request.options.encoding])
    context.abort(grpc.StatusCode.INVALID_ARGUMENT, "seen")

  with rogue.scripted(answer) as address, ImageClient(address) as client:
    monkeypatch.setattr(client._replicas.all[0], "_near", False)
    client.submit(Edit(fake.pixels("s", 0, 64, 64), "x", 0, Options(steps=28))).result(5.0)
  assert set(seen) == {stubs.RAW_RGB8}


def test_a_local_edit_changes_nothing_outside_its_mask(tmp_path):
  source = np.full((64, 64, 3), 120, np.uint8)

  class WholeFrame(fake.FakeBackend):
    """Repaints a square, and every other pixel a little, as diffusion models do."""

    def _row(self, job):
      if job.source is None:
        return super()._row(job)
      noise = np.random.default_rng(job.seed).integers(-9, 10, job.source.shape)
      image = (job.source + noise).clip(0, 255).astype(np.uint8)
      if not job.sham:
        image[20:40, 10:30] = (250, 10, 10)
      return Made(image)

  with fake.serving(WholeFrame()) as (_, address, _):
    with ImageClient(address, config=ClientConfig(local_edits=True)) as client:
      edit = client.edit(source, "a red square", seed=1).result(5.0)
      sham = client.sham(source, edit.mask, seed=2).result(5.0)
    with ImageClient(address) as client:
      whole = client.edit(source, "a red square", seed=1).result(5.0)
  assert whole.mask is None and (whole.image != source).mean() > 0.5
  assert edit.mask[20:40, 10:30].all() and edit.mask.mean() < 0.15
  np.testing.assert_array_equal(edit.image[~edit.mask], source[~edit.mask])
  assert (edit.image[25, 15] == (250, 10, 10)).all()
  np.testing.assert_array_equal(sham.image[~edit.mask], source[~edit.mask])
  inside = np.abs(sham.image[edit.mask].astype(int) - source[edit.mask])
  assert 0 < inside.max() <= 9


def test_an_edit_that_changes_the_grid_cannot_be_pasted():
  with pytest.raises(ValueError, match="grid"):
    locality.composite(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8))


def test_truncated_texts_are_reported():
  with fake.serving(fake.FakeBackend()) as (_, address, _), ImageClient(address) as client:
    assert client.generate("cut", seed=0, **SIZE).result(5.0).truncated
    assert not client.generate("whole", seed=0, **SIZE).result(5.0).truncated


def test_logs_are_json_without_prompts(capfd, tmp_path):
  root = logging.getLogger()
  handlers, level = root.handlers[:], root.level
  try:
    telemetry.log_as_json()
    with fake.serving(fake.FakeBackend()) as (_, address, _), ImageClient(address) as client:
      client.generate("secret words", seed=0, **SIZE).result(5.0)
      client.generate("secret broken", seed=0, **SIZE).result(5.0)
  finally:
    root.handlers[:], root.level = handlers, level
  text = capfd.readouterr().err
  rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
  assert "secret" not in text
  calls = [r for r in rows if r["message"] == "call" and r["method"] == "Generate"]
  assert [c["reason"] for c in calls][:2] == ["", "INTERNAL"]
  texts = [hashlib.sha256(t).hexdigest()[:12] for t in (b"secret words", b"secret broken")]
  assert [c["text"] for c in calls][:2] == texts
  assert any("KeyError at" in r["message"] for r in rows)
