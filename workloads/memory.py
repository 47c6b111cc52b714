"""How much memory this process may still take."""

import os
from contextlib import suppress
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
"""Where a container sees its own limits (cgroup v2)."""

LIMIT, TAKEN = "memory.max", "memory.current"


def available_bytes(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = CGROUP) -> int:
    """What the machine has left, or what the container has left if that is less."""
    left = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError, StopIteration):
        line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:"))
        left = 1024 * int(line.split()[1])
    with suppress(OSError, ValueError):  # no container, or one without a limit, which is the word max
        left = min(left, int((cgroup / LIMIT).read_text()) - int((cgroup / TAKEN).read_text()))
    return left
