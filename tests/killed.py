"""A process that is killed while it writes, for tests of what it leaves."""

import os
import signal
from collections.abc import Callable


def killed_at_renaming(write: Callable[[], object], call: int, *, after: bool = False) -> None:
    """Run something in a child process that is killed at one of its renamings of files, and wait for that.

    Args:
        write: what runs; it renames at least ``call`` + 1 files.
        call: number of the renaming, from 0.
        after: the file is renamed before the child dies; otherwise it isn't.
    """
    child = os.fork()
    if child == 0:  # pragma: no cover - dies below
        seen, replace = [0], os.replace

        def deadly(source, target):
            if seen[0] == call and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)
            if seen[0] == call:
                os.kill(os.getpid(), signal.SIGKILL)
            seen[0] += 1

        try:
            os.replace = deadly
            write()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
