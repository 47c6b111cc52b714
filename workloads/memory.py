"""How much memory this machine has, and how much of it this process may still take."""

import os
from contextlib import suppress
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
"""Where a container sees its own limits (cgroup v2)."""

LIMIT, TAKEN, PARTS = "memory.max", "memory.current", "memory.stat"


def total_bytes() -> int:
    """What the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_bytes(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = CGROUP) -> int:
    """What the machine has left, or what the container has left if that is less."""
    left = total_bytes()
    with suppress(OSError, ValueError, KeyError):
        left = 1024 * _numbers(meminfo)["MemAvailable:"]
    with suppress(OSError, ValueError, KeyError):  # no container, or one without a limit, which is the word max
        # Files that were read count as taken, and are given up when memory is asked for.
        taken = int((cgroup / TAKEN).read_text()) - _numbers(cgroup / PARTS)["inactive_file"]
        left = min(left, int((cgroup / LIMIT).read_text()) - taken)
    return left


def _numbers(file: Path) -> dict[str, int]:
    """Of lines like "name 12" or "name 12 kB"."""
    return {words[0]: int(words[1]) for line in file.read_text().splitlines() if len(words := line.split()) > 1}
