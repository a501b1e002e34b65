"""Memory that this process may still take, as far as its operating system tells."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["free_memory"]

_GROUPS = Path("/sys/fs/cgroup")
_PROCESS = Path("/proc")

# Names of a control group's limit, use, and pages of files among its use, which the kernel gives back when it must.
_UNIFIED = "memory.max", "memory.current", "inactive_file"
_FIRST = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"


def free_memory() -> int | None:
    """Bytes that the machine, this process's control groups and its own limit still allow; None if nobody tells."""
    found: list[int] = []
    for source in (_of_machine, _of_groups, _of_limit):
        with suppress(ImportError, OSError, ValueError, LookupError):
            found.extend(source())
    return max(0, min(found)) if found else None


def _of_machine() -> Iterator[int]:
    yield _fields(_PROCESS / "meminfo")["MemAvailable:"] * 1024


def _of_groups() -> Iterator[int]:
    for line in (_PROCESS / "self" / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, names = (_GROUPS / "memory", _FIRST) if controllers else (_GROUPS, _UNIFIED)
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root):  # a container may not see the folders of its own path
                with suppress(OSError, ValueError, LookupError):
                    yield _left_in(folder, *names)


def _left_in(group: Path, limit: str, use: str, files: str) -> int:
    """What a group has left; "max", no limit, is no number."""
    return int((group / limit).read_text()) - int((group / use).read_text()) + _fields(group / "memory.stat")[files]


def _of_limit() -> Iterator[int]:
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        pages = int((_PROCESS / "self" / "statm").read_text().split()[0])
        yield limit - pages * os.sysconf("SC_PAGE_SIZE")


def _fields(path: Path) -> dict[str, int]:
    """Numbers of a file with a name and a number in each line."""
    return {words[0]: int(words[1]) for line in path.read_text().splitlines() if len(words := line.split()) > 1}
