# SPDX-License-Identifier: Apache-2.0
"""An event loop in a thread of its own, for callers that are not asynchronous."""

import asyncio
from collections.abc import Callable, Coroutine
import threading
from typing import Any, TypeVar

T = TypeVar("T")


class Loop:
  """Runs coroutines for any number of threads; ends with the process if it is not closed."""

  def __init__(self, name: str):
    self._loop = asyncio.new_event_loop()
    self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
    self._thread.start()

  def run(self, work: Coroutine[Any, Any, T]) -> T:
    """Returns what the coroutine returns; ends it if the caller is interrupted."""
    future = asyncio.run_coroutine_threadsafe(work, self._loop)
    try:
      return future.result()
    except BaseException:
      future.cancel()
      raise

  def close(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Ends what is under way, then runs `last`, then ends the thread; may be called twice."""
    if self._loop.is_closed():
      return
    self.run(_cancel_all())
    self.run(last())
    self._loop.call_soon_threadsafe(self._loop.stop)
    self._thread.join()
    self._loop.close()


async def _cancel_all() -> None:
  others = asyncio.all_tasks() - {asyncio.current_task()}
  for task in others:
    task.cancel()
  await asyncio.gather(*others, return_exceptions=True)
