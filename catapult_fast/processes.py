"""Processes of this machine: which live, and since when."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["identity", "is_running", "started_unix"]


def _stat(pid: int) -> list[str]:
    """Fields of ``/proc/PID/stat`` from the state on; empty where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()  # the name before it may hold anything


def identity(pid: int) -> str | None:
    """A mark that no other process of this machine shares, not even a later one with the same number."""
    fields = _stat(pid)
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return f"{boot}/{fields[19]}" if fields else None


def started_unix(pid: int) -> float | None:
    """Start of a process in seconds since 1970; None if this system does not tell."""
    fields = _stat(pid)
    if not fields:
        return None
    try:
        lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
        boot = next(int(line.split()[1]) for line in lines if line.startswith("btime"))
    except (OSError, StopIteration):
        return None
    return boot + int(fields[19]) / os.sysconf("SC_CLK_TCK")


def is_running(pid: int) -> bool:
    """Whether a process of that number lives; one that only waits to be reaped does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _stat(pid)[:1] != ["Z"]
