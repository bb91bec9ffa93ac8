# SPDX-License-Identifier: Apache-2.0
"""The image service: captions and edit instructions in, images out, in a process of its own.

  client   client · requests · answers · replicas · disk_cache · locality
  both     images.proto · stubs · codec · failures · config · security · fit
  server   server · validate · batcher · results · worker · telemetry · backend
           diffusers_backend · openai_backend
  process  the server as a child of a run

Neither side imports jax, and only the diffusers backend imports torch. The client lives next to the
learner, and the server next to the diffusion model.
"""
