# SPDX-License-Identifier: Apache-2.0
import json

import ml_collections
import pytest

from auditdm_jax.core.config import UserError, build
from auditdm_jax.endpoints.config import EndpointConfig, LimitConfig, read_key

URL = "http://127.0.0.1:8000/v1"


def test_from_a_section_of_a_config():
  section = ml_collections.ConfigDict(
    {
      "base_url": URL,
      "model": "m",
      "pictures": {"size": 224, "resample": "bicubic"},
      "ask": {"temperature": None, "extra": {"chat_template_kwargs": {"thinking": False}}},
      "limits": {"concurrency": 4, "timeout_s": 3},
      "price": {"prompt": 0.5, "completion": 2},
    }
  )
  config = build(EndpointConfig, section, name="config.endpoint")
  assert config.pictures.size == 224 and config.pictures.format == "png"
  assert config.ask.extra["chat_template_kwargs"]["thinking"] is False
  assert json.loads(json.dumps(config.ask.extra)) == config.ask.extra, "it travels as JSON"
  assert config.limits == LimitConfig(concurrency=4, timeout_s=3.0)
  assert config.price is not None and config.price.completion == 2.0


@pytest.mark.parametrize(
  ("section", "says"),
  [
    ({"base_url": "127.0.0.1:8000"}, "not an address such as http://"),
    ({"base_url": "ftp://host/v1"}, "not an address such as http://"),
    ({"base_url": "http://[bad/v1"}, "not an address such as http://"),
    ({"base_url": "http://host/v1\n"}, "not an address such as http://"),
    ({"model": ""}, "model: empty"),
    ({"key_file": "a", "key_env": "B"}, "both set"),
    ({"limits": {"concurrency": 0}}, "concurrency=0: must be at least 1"),
    ({"limits": {"timeout_s": float("nan")}}, "timeout_s=nan"),
    ({"ask": {"temperature": 3}}, "temperature=3"),
    ({"ask": {"extra": {"n": 3}}}, "extra.n"),
    ({"pictures": {"format": "webp"}}, "'png', 'jpeg'"),
    ({"retry": 3}, "unknown key"),
    ({"price": {"prompt": 1}}, "missing key"),
  ],
)
def test_mistakes_are_one_line(section, says):
  with pytest.raises(UserError, match=says) as e:
    build(EndpointConfig, {"base_url": URL, "model": "m", **section}, name="config.endpoint")
  assert "\n" not in str(e.value)


@pytest.mark.parametrize("url", ["http://me:hunter2@host/v1", "http://host/v1?key=hunter2"])
def test_a_key_in_the_address_is_refused_and_not_shown(url):
  with pytest.raises(UserError, match="key_file or key_env") as e:
    EndpointConfig(url, "m")
  assert "hunter2" not in str(e.value)


def test_key(tmp_path, monkeypatch):
  file = tmp_path / "key"
  file.write_text("sk-123\n")
  assert read_key(EndpointConfig(URL, "m", key_file=str(file))).reveal() == "sk-123"
  monkeypatch.setenv("MY_KEY", "sk-456")
  secret = read_key(EndpointConfig(URL, "m", key_env="MY_KEY"))
  assert secret.reveal() == "sk-456"
  assert "456" not in repr(secret) and "456" not in f"{secret}"
  assert secret.scrub("a sk-456 b") == "a *** b"
  monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-server")
  assert read_key(EndpointConfig(URL, "m")).reveal() == ""


@pytest.mark.parametrize("content", ["", "two words", "ключ", "a\nb"])
def test_what_is_no_key(tmp_path, content):
  file = tmp_path / "key"
  file.write_text(content)
  with pytest.raises(UserError, match="endpoint.key_file") as e:
    read_key(EndpointConfig(URL, "m", key_file=str(file)))
  assert not content or content not in str(e.value).replace(str(file), "")
  with pytest.raises(UserError, match="endpoint.key_env: NOT_SET is empty or not set"):
    read_key(EndpointConfig(URL, "m", key_env="NOT_SET"))
  with pytest.raises(UserError, match="cannot be read"):
    read_key(EndpointConfig(URL, "m", key_file=str(tmp_path / "none")))
