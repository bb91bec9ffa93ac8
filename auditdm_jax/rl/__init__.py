# SPDX-License-Identifier: Apache-2.0
"""GRPO for the auditor. `trainer.Run.step` is a step: `Rollout.step` does 1 to 7, then an update.

  1. prompts      draws      which images are looked at by which strategy (`strategy`)
  2. first turns  probing    G replies per prompt: `sight` encodes images, `sampler` writes
  3. parsing      strategy   a reply is a text of its kind, or malformed; of more samples than are
                             asked, `picking` keeps a group by a `surrogate` (off by default)
  4. images       drawing    the image service draws; `probing` then samples second turns
  5. answers      scoring    target and references answer, a verdict follows (`audit`)
  6. reward       reward     terms, weights and novelty; `grpo.advantages` compares a group
  7. batch        packing    turns become rows (`batch`), groups may be topped up (`dynamic`)
     update       learner    places the rows; `programs` compiles `step`, whose loss is in `grpo`

`shapes` says which device calls these are, from the config alone, and `build` connects the phases.
What is written down is in `records`, `gauges` and `flops`.
"""
