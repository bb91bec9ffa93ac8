# SPDX-License-Identifier: Apache-2.0
import itertools
import time

import pytest

from auditdm_jax.endpoints.endpoint import Endpoint
from auditdm_jax.endpoints.failures import BlindEndpoint
from auditdm_jax.endpoints.sight import pictures, prove_sight
from tests.endpoints.fake_server import Answer, completion, error


def prove(server, config_of, **limits):
  with Endpoint(config_of(server, **limits)) as endpoint:
    return prove_sight(endpoint)


def told(text: str, prompt: int | None = None) -> Answer:
  return completion(text, usage={"prompt_tokens": prompt, "completion_tokens": 1})


def test_an_endpoint_that_sees(server, config_of):
  sight = prove(server, config_of)
  assert (sight.evidence, sight.answers, sight.picture_tokens) == ("right", ("red", "blue"), 10)


def test_pictures_differ_in_all_that_is_asked():
  red, blue = pictures(60)
  assert red.shape == blue.shape == (60, 60, 3)
  for picture, squares in ((red, 1), (blue, 3)):
    assert (picture == 255).all(-1).sum() == squares * 10 * 10


@pytest.mark.parametrize("usage", [True, False])
def test_a_blind_endpoint_is_refused(usage, server, config_of):
  server.blind, server.usage = True, usage
  with pytest.raises(
    BlindEndpoint, match="does not see pictures: it says 'I see no picture.'"
  ) as e:
    prove(server, config_of)
  assert "\n" not in str(e.value)


def test_a_data_url_that_is_read_as_text_is_no_sight(server, config_of):
  server.blind = "text"
  with pytest.raises(BlindEndpoint, match="does not see"):
    prove(server, config_of)

  def respond(asked):  # Its answers depend on the characters of the URL.
    return told(str(hash(asked.url)), 20 + len(asked.url) // 3)

  server.respond = respond
  with pytest.raises(BlindEndpoint, match="does not see"):
    prove(server, config_of)


def test_a_blind_endpoint_that_samples_does_not_seem_to_see(server, config_of):
  server.blind, server.samples = True, True
  with pytest.raises(BlindEndpoint):
    prove(server, config_of)
  numbers = itertools.count()
  server.respond = lambda asked: told(f"picture {next(numbers)}")  # Another word each time.
  with pytest.raises(BlindEndpoint):
    prove(server, config_of)


def test_answers_that_differ_with_the_picture_are_enough(server, config_of):
  server.respond = lambda asked: told(asked.url[-200:-150])
  assert prove(server, config_of).evidence == "different"


def test_a_model_with_random_weights_is_known_by_its_tokens(server, config_of, caplog):
  server.respond = lambda asked: told("la la", 20 if asked.url else 14)
  sight = prove(server, config_of)
  assert (sight.evidence, sight.picture_tokens) == ("tokens", 6)
  assert "from 6 tokens only" in caplog.text
  # A word in place of the picture is not a picture.
  server.respond = lambda asked: told("la la", 17 if asked.url else 14)
  with pytest.raises(BlindEndpoint):
    prove(server, config_of)


@pytest.mark.parametrize("status", [400, 500])
def test_a_server_that_refuses_pictures_is_not_down(status, server, config_of):
  def respond(asked):
    return error(status, "image input is not supported") if asked.url else told("hi")

  server.respond = respond
  start = time.monotonic()
  with pytest.raises(BlindEndpoint, match="answers no question about a picture.*not supported"):
    prove(server, config_of, outage_s=600.0)
  assert time.monotonic() - start < 60


def test_a_server_that_refuses_questions_without_a_picture_is_not_blind(server, config_of):
  server.respond = lambda asked: (
    told("red" if asked.picture.mean((0, 1))[0] > 100 else "blue")
    if asked.url
    else error(500, "no image")
  )
  sight = prove(server, config_of)
  assert sight.evidence == "right" and sight.picture_tokens is None
