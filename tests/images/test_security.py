# SPDX-License-Identifier: Apache-2.0
"""TLS, mTLS and tokens: who may ask, and what a mistake looks like."""

import shutil
import subprocess
import time

import grpc
import pytest

from auditdm_jax.core.config import UserError, build
from auditdm_jax.images import server, stubs
from auditdm_jax.images.client import ImageClient
from auditdm_jax.images.config import ClientConfig, ImagesConfig, Security
from auditdm_jax.images.failures import NoImageReason
from tests.images import fake

SIZE = dict(width=8, height=8)


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
  """A function from a name to Security of a certificate that the one CA has signed."""
  if shutil.which("openssl") is None:
    pytest.skip("openssl is needed to make certificates")
  folder = tmp_path_factory.mktemp("pki")

  def openssl(*args):
    subprocess.run(["openssl", *args], cwd=folder, check=True, capture_output=True)

  def make(name, *, ca="ca"):
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    subject = ("-subj", f"/CN={name}", "-days", "2")
    if not (folder / f"{ca}.pem").exists():
      openssl("req", "-x509", *key, "-keyout", f"{ca}.key", "-out", f"{ca}.pem", *subject)
    openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
    (folder / "ext").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    openssl(
      "x509",
      "-req",
      "-in",
      f"{name}.csr",
      "-CA",
      f"{ca}.pem",
      "-CAkey",
      f"{ca}.key",
      "-CAcreateserial",
      "-out",
      f"{name}.pem",
      "-days",
      "2",
      "-extfile",
      "ext",
    )
    return Security(
      cert=str(folder / f"{name}.pem"),
      key=str(folder / f"{name}.key"),
      ca=str(folder / f"{ca}.pem"),
    )

  return make


def _ask(address, security, *, deadline_s=3.0, retries=3):
  with ImageClient(
    address, config=ClientConfig(security=security, deadline_s=deadline_s, retries=retries)
  ) as client:
    return client.generate("a", seed=0, **SIZE).result(10.0)


def _config(security):
  return ImagesConfig(**SIZE, security=security)


def test_mtls_lets_in_whom_the_ca_has_signed(pki):
  server, friend, stranger = pki("server"), pki("friend"), pki("stranger", ca="other")
  with fake.serving(fake.FakeBackend(), _config(server)) as (_, address, _):
    assert _ask(address, friend).failure is None
    knows_ca = Security(cert=stranger.cert, key=stranger.key, ca=friend.ca)
    assert _ask(address, knows_ca).failure.reason is NoImageReason.UNAVAILABLE
    assert _ask(address, Security(ca=friend.ca)).failure.reason is NoImageReason.UNAVAILABLE
    assert _ask(address, Security()).failure.reason is NoImageReason.UNAVAILABLE
    assert _ask(address, friend).failure is None, "the service has survived them"


def test_a_server_that_the_ca_has_not_signed_is_not_trusted(pki):
  with fake.serving(fake.FakeBackend(), _config(pki("imposter", ca="other"))) as (_, address, _):
    failure = _ask(address, Security(ca=pki("friend").ca)).failure
  assert failure.reason is NoImageReason.UNAVAILABLE and failure.fault == "service"


def test_a_tls_mistake_is_found_out_soon_and_named(pki):
  server = Security(cert=pki("server").cert, key=pki("server").key)
  with fake.serving(fake.FakeBackend(), _config(server)) as (_, address, _):
    with ImageClient(address) as client:
      start = time.monotonic()
      with pytest.raises(TimeoutError, match="does one side use TLS"):
        client.wait_ready(0.5)
      assert time.monotonic() - start < 10.0
    with ImageClient(
      address, config=ClientConfig(security=Security(ca=pki("server").ca))
    ) as client:
      client.wait_ready(5.0)


@pytest.fixture
def token(tmp_path):
  path = tmp_path / "token"
  path.write_text("correct horse\n")
  return Security(token=str(path))


def test_only_the_token_opens_the_service(token, tmp_path):
  wrong = tmp_path / "wrong"
  wrong.write_text("correct hors")
  with fake.serving(fake.FakeBackend(), _config(token)) as (_, address, _):
    assert _ask(address, token).failure is None
    for other in (Security(), Security(token=str(wrong))):
      failure = _ask(address, other).failure
      assert failure.reason is NoImageReason.UNAUTHENTICATED and failure.fault == "service"
      assert "(try 1)" in failure.message, "asking again cannot help"
      with ImageClient(address, config=ClientConfig(security=other)) as client:
        with pytest.raises(ConnectionError, match="token"):
          client.wait_ready(5.0)  # Health is open, the model is not.


def test_every_method_wants_the_token(token):
  with fake.serving(fake.FakeBackend(), _config(token)) as (_, address, _):
    with grpc.insecure_channel(address) as channel:
      for name, method in stubs.SERVICE.methods_by_name.items():
        make = channel.unary_stream if method.server_streaming else channel.unary_unary
        call = make(f"/{stubs.SERVICE.full_name}/{name}")
        with pytest.raises(grpc.RpcError) as error:
          list(call(b"", timeout=5.0))
        assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED, name


def test_token_and_tls_together(pki, token):
  pair = pki("server")
  both = Security(cert=pair.cert, key=pair.key, token=token.token)
  with fake.serving(fake.FakeBackend(), _config(both)) as (_, address, _):
    assert _ask(address, Security(ca=pair.ca, token=token.token)).failure is None
    assert _ask(address, Security(ca=pair.ca)).failure.reason is NoImageReason.UNAUTHENTICATED


def test_a_token_never_crosses_a_network_in_clear(token):
  with pytest.raises(UserError, match="in clear"):
    build(ImagesConfig, {"host": "0.0.0.0", "security": {"token": token.token}}, name="config")
  with pytest.raises(ValueError, match="in clear"):
    ImageClient("images.example.org:8500", config=ClientConfig(security=token))


def test_half_a_pair_is_a_mistake():
  with pytest.raises(UserError, match="together"):
    build(ImagesConfig, {"security": {"cert": "a.pem"}}, name="config")


def test_a_ca_without_a_certificate_is_no_plaintext_server():
  with pytest.raises(UserError, match="config: security.ca .* give security.cert"):
    build(ImagesConfig, {"security": {"ca": "ca.pem"}}, name="config")
  build(ImagesConfig, {"client": {"security": {"ca": "ca.pem"}}}, name="config")


@pytest.mark.parametrize(
  "content, message",
  [
    (None, "Is a directory: .*/file"),
    (b"\n", "file: no token in it"),
    (b"\xff\xfe\0", "file: a token is one line"),
    (b"two\nlines", "file: a token is one line"),
  ],
)
def test_a_token_that_cannot_be_read_keeps_the_server_from_starting(content, message, tmp_path):
  path = tmp_path / "file"
  path.mkdir() if content is None else path.write_bytes(content)
  with pytest.raises(server.StartError, match=f"config.images.security: .*{message}"):
    with fake.serving(fake.FakeBackend(), _config(Security(token=str(path)))):
      pass


def test_a_certificate_that_cannot_be_read_keeps_the_server_from_starting(tmp_path):
  for path, why in ((tmp_path, "Is a directory"), (tmp_path / "no", "No such file")):
    with pytest.raises(server.StartError, match=f"config.images.security: .*{why}.*{path}"):
      with fake.serving(fake.FakeBackend(), _config(Security(cert=str(path), key=str(path)))):
        pass


def test_an_empty_token_file_is_no_token(tmp_path):
  path = tmp_path / "token"
  path.write_text("\n")
  with pytest.raises(ValueError, match="no token"):
    ImageClient("127.0.0.1:1", config=ClientConfig(security=Security(token=str(path))))


@pytest.mark.parametrize("data", [b"one\ntwo\n", "h\u00e4".encode(), b"\xff\xfe\x00", b"a\x07b"])
def test_a_token_that_no_header_can_carry_is_said_at_once(tmp_path, data):
  path = tmp_path / "token"
  path.write_bytes(data)
  security = Security(token=str(path))
  with pytest.raises(ValueError, match="token: a token is one line of printable ASCII"):
    ImageClient("127.0.0.1:1", config=ClientConfig(security=security))
