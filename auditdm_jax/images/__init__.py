# SPDX-License-Identifier: Apache-2.0
"""The image service: captions and edit instructions in, images out, in a process of its own.

`server` and `client` share only `images.proto` and the table of reasons in `failures`. Neither
imports jax or torch: the client lives beside the learner, the server beside the diffusion model.
"""
