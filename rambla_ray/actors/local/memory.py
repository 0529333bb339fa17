"""The memory of an actor: what is free before its model is loaded, and the most that it has had."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

from rambla_ray.config.sections import Pool
from rambla_ray.display import counted


def free_bytes(chip: str, share: float) -> int:
    """Memory that is free where the model goes: of this machine, or of the GPUs that this actor sees.

    Args:
        chip: cpu or cuda.
        share: the part of a GPU's memory that is this actor's.
    """
    if chip == "cpu":
        import psutil

        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
        free = int(psutil.virtual_memory().available)
        with contextlib.suppress(OSError, ValueError):  # There is no such file, or no limit: then it holds "max".
            free = min(free, int(limit.read_bytes()) - int(used.read_bytes()))
        return free
    import torch

    total = 0
    for number in range(torch.cuda.device_count()):
        free, whole = torch.cuda.mem_get_info(number)
        total += min(free, int(share * whole) - torch.cuda.memory_reserved(number))
    return total


def in_gib(count: float) -> str:
    """A number of bytes, for people."""
    return f"{count / 1024**3:.1f} GiB"


def shortage(chip: str, free: int, pool: Pool) -> str:
    """That only `free` bytes are free where the model goes, and what to do about it on a GPU."""
    if chip == "cpu":
        return f"this machine has {in_gib(free)} of memory free"
    return (
        f"there are {in_gib(free)} free on the {counted(pool.num_gpus or 0.0, 'GPU')} of this actor; "
        "raise pool.num_gpus (with device_map: auto), or load it in fewer bits"
    )


def of_children() -> int:
    """The memory that the processes have which this one has started, now."""
    import psutil

    total = 0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # It has ended.
            total += int(process.memory_info().rss)
    return total


def peak_bytes(chip: str) -> int:
    """The most memory that this actor has had: of its GPUs, or of the machine."""
    if chip == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    import torch

    return sum(torch.cuda.max_memory_allocated(number) for number in range(torch.cuda.device_count()))
