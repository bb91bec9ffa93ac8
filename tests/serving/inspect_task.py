# SPDX-License-Identifier: Apache-2.0
"""Questions about images as a task of Inspect, for `inspect eval`; see test_inspect.py.

Each line of the file is {"image": path, "question": …, "answer": …}.
"""

import json
import pathlib

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageUser, ContentImage, ContentText
from inspect_ai.scorer import exact
from inspect_ai.solver import generate


@task
def vqa(path: str) -> Task:
  rows = [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]
  samples = [
    Sample(
      id=i,
      input=[
        ChatMessageUser(
          content=[ContentImage(image=row["image"]), ContentText(text=row["question"])]
        )
      ],
      target=row["answer"],
    )
    for i, row in enumerate(rows)
  ]
  return Task(dataset=MemoryDataset(samples), solver=generate(), scorer=exact())
