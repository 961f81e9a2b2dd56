"""A task in a process of its own, which gets ready while this one does something else.

Importing torch takes as long as copying gigabytes. A proof that needs it is therefore run by a copy of this process,
made before anything is written: it imports torch meanwhile, and proves when it is told that there is something to
prove. (In a thread the import would hold this process up, and swallow interrupts.)
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Result = TypeVar("Result")

_GO = b"g"


class Aside(Generic[Result]):
    """A task that runs aside once it is told to; in this process where there is no other, or where that one died."""

    def __init__(self, task: Callable[[], Result], child: int | None = None, tell: int = -1, listen: int = -1) -> None:
        self._task = task
        self._child = child
        self._tell = tell
        self._listen = listen

    def begin(self) -> None:
        """What the task needs is there."""
        if self._child is not None:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._tell, _GO)

    def result(self) -> Result:
        """Wait for the task; what it raised is raised here."""
        if self._child is None:
            return self._task()
        with os.fdopen(os.dup(self._listen), "rb") as pipe:
            answer = pipe.read()
        try:
            good, value = pickle.loads(answer)  # (bytes of our own making)
        except Exception:  # it was killed, for want of memory mostly
            return self._task()
        if not good:
            raise value
        result: Result = value
        return result

    def end(self) -> None:
        """Let the other process go, whatever it is doing."""
        if self._child is None:
            return
        os.close(self._tell)
        os.close(self._listen)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, 0)


def can_go_aside() -> bool:
    """Whether a copy of this process would be a sound one, and spare it an import: no threads, no torch yet.

    (On macOS system libraries may not be used in a copy.)
    """
    return sys.platform == "linux" and "torch" not in sys.modules and threading.active_count() == 1


@contextlib.contextmanager
def aside(ready: Callable[[], object], task: Callable[[], Result], *, wanted: bool) -> Iterator[Aside[Result]]:
    """`task` aside, where it is wanted and can be; `ready` is what may be done before `begin`."""
    if not (wanted and can_go_aside()):
        yield Aside(task)
        return
    go, tell = os.pipe()
    listen, answer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(tell)
        os.close(listen)
        _serve(go, answer, ready, task)
    os.close(go)
    os.close(answer)
    made = Aside(task, child, tell, listen)
    try:
        yield made
    finally:
        made.end()


def _serve(go: int, answer: int, ready: Callable[[], object], task: Callable[[], object]) -> None:
    """In the copy: it never returns, so that nothing of what the first process has begun is ended twice."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process decides
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        ready()
        if os.read(go, 1) == _GO:
            try:
                found: tuple[bool, object] = (True, task())
            except Exception as error:
                found = (False, error)
            with os.fdopen(answer, "wb") as pipe:
                pipe.write(pickle.dumps(found))
    finally:
        os._exit(0)
