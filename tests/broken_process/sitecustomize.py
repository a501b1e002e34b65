"""Ends or deceives a process at one call to the operating system: loaded by every Python with this folder on its path.

``FAULT`` is ``role:call:name:number:what``; the call counts when its process plays the role and its arguments name
``name`` (calls with a file descriptor name nothing).
"""

import errno
import os
import signal
import sys


def _break(call, name, number, what):
    original, seen = getattr(os, call), [0]

    def broken(*arguments, **options):
        seen[0] += name in repr(arguments)
        if seen[0] != number or name not in repr(arguments):
            return original(*arguments, **options)
        if what == "error":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if what == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if what == "half":
            original(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2], *arguments[2:])
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "flip":
            data = bytearray(arguments[1])
            data[len(data) // 2] ^= 1
            return original(arguments[0], data, *arguments[2:])
        result = original(*arguments, **options)
        if what == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(os, call, broken)


if "FAULT" in os.environ:
    role, call, name, number, what = os.environ["FAULT"].split(":")
    if role == ("merge" if "catapult_fast.merging" in sys.orig_argv else "run"):
        _break(call, name, int(number), what)
