"""The threads that backends on the CPU compute with: how many, and work shared among them.

NumPy lets go of the interpreter's lock in its loops, so that threads of one process run side by side. No bit depends
on how many there are.
"""

import operator
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Work = TypeVar("Work")


def _cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_number = _cores()


def set_num_threads(number: int) -> None:
    """Set how many threads passes over NumPy arrays use; at first it is the number of cores at hand.

    It changes no bit of any result. A pass over few elements uses one thread all the same.

    Parameters
    ----------
    number
        At least 1.

    Raises
    ------
    TypeError
        If the number is no integer.
    ValueError
        If it is less than 1.

    Examples
    --------
    >>> import gpureg
    >>> before = gpureg.get_num_threads()
    >>> gpureg.set_num_threads(1)
    >>> gpureg.get_num_threads()
    1
    >>> gpureg.set_num_threads(before)
    """
    global _number  # noqa: PLW0603 - one number for the process, as NumPy's and PyTorch's are
    if isinstance(number, bool):
        raise TypeError("the number of threads must be an integer, not a bool")
    given = operator.index(number)
    if given < 1:
        raise ValueError(f"the number of threads must be at least 1, not {given}")
    _number = given


def get_num_threads() -> int:
    """Return how many threads passes over NumPy arrays use.

    Examples
    --------
    >>> import gpureg
    >>> gpureg.get_num_threads() >= 1
    True
    """
    return _number


class _Pool:
    """The threads beside the caller's own, started when first needed and kept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._size = 0
        self._executor: ThreadPoolExecutor | None = None

    def get(self, size: int) -> ThreadPoolExecutor:
        """Return an executor of at least so many threads; a smaller one ends when those who have it are done."""
        with self._lock:
            if self._executor is None or self._size < size:
                self._executor, self._size = ThreadPoolExecutor(size, "gpureg"), size
            return self._executor


_pool = _Pool()


def _forget() -> None:
    """Forget the threads of the parent process: a fork does not bring them along."""
    global _pool  # noqa: PLW0603
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def share(work: Iterable[Work], worker: Callable[[Callable[[], Work | None]], None]) -> None:
    """Call `worker` in each of up to `get_num_threads()` threads, this one included, until all is done.

    A worker is given a function that returns the next piece of work, or None when there is no more. What one raises
    ends the others after their piece, and is raised here when none is at work any more.
    """
    left = deque(work)

    def take() -> Work | None:
        try:
            return left.popleft()
        except IndexError:
            return None

    def work_off() -> None:
        try:
            worker(take)
        except BaseException:
            left.clear()
            raise

    others = min(_number, len(left)) - 1
    if others < 1:
        worker(take)
        return
    futures: list[Future[None]] = []
    try:
        executor = _pool.get(others)
        for _ in range(others):
            try:
                futures.append(executor.submit(work_off))
            except RuntimeError:
                break  # the interpreter is about to end, and starts no thread any more
        work_off()
    finally:
        errors = [future.exception() for future in futures if not future.cancel()]
    for error in errors:
        if error is not None:
            raise error
