# SPDX-License-Identifier: Apache-2.0
r"""A sixth strategy: the auditor drafts a question, reads it, and asks a harder one.

COMMAND
  python -m auditdm_jax train --config=configs/ablations/first.py --workdir=runs/own_strategy \
    --config.rollout.strategies="('examples.own_strategy:SHARPEN',)" \
    --config.rollout.prompts.sharpen=8 --config.rollout.max_new_tokens.draft=11 \
    --config.rollout.task.draft=ask --config.rollout.task.question-after-draft=ask

The two `task` overrides are for the tiny auditor of the scenes world, which knows three words. Any
other auditor is given the prompts below.
"""

from auditdm_jax.rl.strategy import Strategy, Turn

DRAFT = (
  "You audit a vision-language model by asking it questions it is likely to get wrong. Write one"
  " question about the image that has one short answer. Reply with the question only, on one line."
)
HARDER = (
  "You audit a vision-language model by asking it questions it is likely to get wrong. Your draft"
  " was: {first}\nWrite a harder question about the same image, which needs a closer look or one"
  " more step of thought and still has one short answer. Reply with the question only, on one line."
)

# No image is made: both turns look at the source image, and the last one writes the question.
SHARPEN = Strategy("sharpen", (Turn("draft", DRAFT), Turn("question", HARDER)))
