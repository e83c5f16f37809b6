"""Work on many disks shared out over threads, each of which computes on its own.

Operations on a few hundred disks are too short to be split over threads one by one: on a busy machine the threads would spend
their time waiting for each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def shared_out(work: Callable[[Item], Result], items: Iterable[Item], device: torch.device) -> list[Result]:
    """``[work(i) for i in items]``, on the CPU with as many threads as torch has here, in the caller's mode of inference."""
    items = list(items)
    threads = torch.get_num_threads()
    count = min(threads, len(items))
    if count < 2 or device.type != "cpu":
        return [work(i) for i in items]
    inference = torch.is_inference_mode_enabled()

    def run(item: Item) -> Result:
        with torch.inference_mode(inference):
            return work(item)

    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(run, items))
    finally:
        torch.set_num_threads(threads)  # what new threads start with is one setting for all
