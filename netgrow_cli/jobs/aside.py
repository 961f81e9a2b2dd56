"""A task in a process of its own, which gets ready while this one does something else.

Importing torch takes as long as copying gigabytes. A proof that needs it is therefore run by a copy of this process,
made before anything is written: it imports torch meanwhile, and proves when it is told that there is something to
prove. (In a thread the import would hold this process up, and swallow interrupts.) A copy may also do what may end a
process, such as looking at mapped files: this one then does the task itself, in a way that is safe.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import select
import signal
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Result = TypeVar("Result")

_GO = b"g"
_PATIENCE = 0.1
"""Seconds between two looks at how far a task is."""


class Aside(Generic[Result]):
    """A task that runs aside once it is told to; in this process where there is no other, or where that one died."""

    def __init__(self, here: Callable[[], Result], child: int | None = None, tell: int = -1, listen: int = -1) -> None:
        self._here = here
        self._child = child
        self._tell = tell
        self._listen = listen

    @property
    def apart(self) -> bool:
        """Whether there is another process for it."""
        return self._child is not None

    def begin(self) -> None:
        """What the task needs is there."""
        if self._child is not None:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._tell, _GO)

    def result(self, meanwhile: Callable[[], object] = lambda: None) -> Result:
        """Wait for the task; what it raised is raised here, but for what the system refuses: then it is tried here.

        meanwhile: is called every now and then.
        """
        if self._child is None:
            return self._here()
        answer = b""
        while more := self._heard(meanwhile):
            answer += more
        try:
            good, value = pickle.loads(answer)  # (bytes of our own making)
        except Exception:  # it was killed, for want of memory mostly
            return self._here()
        if not good and isinstance(value, OSError):  # (a file system that maps no files, for one)
            return self._here()
        if not good:
            raise value
        result: Result = value
        return result

    def _heard(self, meanwhile: Callable[[], object]) -> bytes:
        while not select.select([self._listen], [], [], _PATIENCE)[0]:
            meanwhile()
        return os.read(self._listen, 1 << 16)

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


class Relay:
    """Counts what is done aside, and tells `advance` of it here."""

    def __init__(self, advance: Callable[[int], object]) -> None:
        self._advance = advance
        self._shared = mmap.mmap(-1, struct.calcsize("Q"))
        self._lock = threading.Lock()
        self._told = 0

    def advance(self, count: int) -> None:
        """Aside: so much more is done."""
        with self._lock:
            struct.pack_into("Q", self._shared, 0, self._done() + count)

    def tell(self) -> None:
        """Here: tell what was done since."""
        done = self._done()
        self._advance(done - self._told)
        self._told = done

    def _done(self) -> int:
        return int(struct.unpack_from("Q", self._shared)[0])


@contextlib.contextmanager
def aside(
    ready: Callable[[], object],
    task: Callable[[], Result],
    here: Callable[[], Result] | None = None,
    *,
    wanted: bool,
) -> Iterator[Aside[Result]]:
    """`task` aside, where it is wanted and can be; `ready` is what may be done before `begin`.

    here: what gives the same in this process, if that is not `task` itself.
    """
    if not (wanted and can_go_aside()):
        yield Aside(here or task)
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
    made = Aside(here or task, child, tell, listen)
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
