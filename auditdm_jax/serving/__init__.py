# SPDX-License-Identifier: Apache-2.0
"""A model behind OpenAI's chat API, so that tools which only know endpoints can ask it.

a request's way   app ─▶ schema ─▶ chat, pictures ─▶ batcher ─▶ engine ─▶ replies ─▶ app

app        HTTP: routes, key, limits, errors
schema     what a request may say
chat       messages to the model's own prompt
pictures   data URLs to the square that the tower takes
batcher    the bounded queue, and which requests share a call of the model
engine     the model's thread: features, completions
replies    completions to JSON and to server-sent events
"""
