# SPDX-License-Identifier: Apache-2.0
"""Models behind OpenAI-compatible endpoints: pixels and text in, text or a counted "no answer" out.

  config       what an endpoint is called, asked and allowed to cost; where its key is
  endpoint     Endpoint: many questions at once, each asked until it has an answer or a reason
  wire         the openai client: one request, its answer bounded, its errors named
  failures     the reasons, and what follows from each
  replies      from the JSON of a chat completion to a Reply
  gate         pauses everything while nobody answers
  cache        what was answered, on disk
  budget       what was spent, counted and bounded
  pictures     arrays to data URLs
  sight        prove_sight: does it look at the pictures?
  fingerprint  which model, server and version answers, and how

An endpoint is another model than the folder of the same name: vLLM runs PaliGemma's prompt
causally, llama.cpp leaves out Gemma 3's blank lines around the image.
"""
