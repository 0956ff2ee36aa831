"""Work is shared among threads: all of it is done once, errors come through, and a fork does not hang."""

import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import gpureg
from gpureg import threads


@pytest.fixture(autouse=True)
def _number() -> Iterator[None]:
    before = gpureg.get_num_threads()
    yield
    gpureg.set_num_threads(before)


def test_at_first_all_cores_at_hand_are_used() -> None:
    code = "import os, gpureg; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(gpureg.get_num_threads())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) == threads._cores()
    first = code.replace("import os, gpureg; ", "import os; ").replace("print", "import gpureg; print")
    assert subprocess.run([sys.executable, "-c", first], capture_output=True, text=True, check=True).stdout == "1\n"


@pytest.mark.parametrize(
    ("number", "error"), [(0, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError), ("2", TypeError)]
)
def test_what_is_no_number_of_threads(number: Any, error: type[Exception]) -> None:
    before = gpureg.get_num_threads()
    with pytest.raises(error):
        gpureg.set_num_threads(number)
    assert gpureg.get_num_threads() == before
    gpureg.set_num_threads(np.int64(3))  # type: ignore[arg-type] # any integer is taken
    assert gpureg.get_num_threads() == 3


@pytest.mark.parametrize("number", [1, 2, 5, 50])
@pytest.mark.parametrize("pieces", [0, 1, 2, 1000])
def test_each_piece_is_done_once(number: int, pieces: int) -> None:
    gpureg.set_num_threads(number)
    done: list[tuple[int, int]] = []
    started = threading.Barrier(max(min(number, pieces), 1), timeout=30)

    def worker(take: Callable[[], int | None]) -> None:
        started.wait()  # so many threads are there at once, and no more
        while (piece := take()) is not None:
            done.append((piece, threading.get_ident()))

    threads.share(range(pieces), worker)
    assert sorted(piece for piece, _ in done) == list(range(pieces))


def test_the_caller_works_too_and_alone_where_there_is_little() -> None:
    gpureg.set_num_threads(8)
    at_work = set()

    def worker(take: Callable[[], int | None]) -> None:
        at_work.add(threading.get_ident())
        while take() is not None:
            pass

    threads.share([1], worker)
    assert at_work == {threading.get_ident()}


@pytest.mark.parametrize("fails", ["the caller", "another"])
def test_an_error_comes_through_when_all_have_stopped(fails: str) -> None:
    gpureg.set_num_threads(2)
    caller, both = threading.get_ident(), threading.Barrier(2, timeout=30)
    at_work: list[int] = []
    done: list[int] = []
    failed = threading.Event()

    def worker(take: Callable[[], int | None]) -> None:
        both.wait()
        at_work.append(1)
        try:
            if (threading.get_ident() == caller) == (fails == "the caller"):
                failed.set()
                raise KeyError("lost")
            failed.wait()
            time.sleep(0.01)  # the error is on its way
            while (piece := take()) is not None:
                done.append(piece)
        finally:
            at_work.pop()

    for _ in range(20):
        with pytest.raises(KeyError, match="lost"):
            threads.share(range(10_000), worker)
        assert at_work == []
        assert done == []


def test_more_threads_may_be_asked_for_later() -> None:
    w = np.ones(2**20, np.float32)
    for number in (2, 6, 3):
        gpureg.set_num_threads(number)
        assert gpureg.l1_loss(w) == 2**20


def test_the_number_may_change_while_passes_run() -> None:
    w = np.ones(2**20, np.float32)
    results: list[float] = []
    workers = [
        threading.Thread(target=lambda: results.extend(float(gpureg.l1_loss(w)) for _ in range(20))) for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for number in range(2, 50):
        gpureg.set_num_threads(number)
        time.sleep(0.002)
    for worker in workers:
        worker.join()
    assert results == [2.0**20] * 60


def test_when_no_thread_starts_any_more_the_caller_works_alone() -> None:
    code = """
import atexit, numpy, gpureg
gpureg.set_num_threads(3)
w = numpy.ones(2**20)
atexit.register(lambda: print(gpureg.l1_loss(w)))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "1048576.0\n"
    assert ended.stderr == ""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="there is no fork here")
def test_a_forked_child_has_threads_of_its_own() -> None:
    code = """
import os, threading, numpy, gpureg
gpureg.set_num_threads(3)
w = numpy.ones(2**20)
assert gpureg.l1_loss(w) == 2**20
child = os.fork()
if not child:
    alone = threading.active_count() == 1
    os._exit(0 if gpureg.l1_loss(w) == 2**20 and alone and threading.active_count() > 1 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert gpureg.l1_loss(w) == 2**20
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


def test_errors_of_numpy_stay_silent_in_all_threads() -> None:
    gpureg.set_num_threads(4)
    w = np.full(2**20, 1e300)
    with np.errstate(all="raise"):
        assert gpureg.l2_loss(w) == np.inf
