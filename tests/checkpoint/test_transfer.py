"""Tasks that write to several files: which comes next."""

from __future__ import annotations

import threading

from netgrow_cli.checkpoint.transfer import Lanes, in_parallel


def test_the_file_with_the_most_left_comes_next() -> None:
    lanes = Lanes([(1, 10, "a"), (1, 10, "b"), (2, 30, "c"), (2, 1, "d"), (3, 5, "e")])
    assert [lanes.run(lambda task: task) for _ in range(5)] == ["c", "a", "b", "e", "d"]


def test_a_file_that_nobody_writes_to_comes_first() -> None:
    lanes, writes, go = Lanes([(1, 90, "a"), (1, 90, "b"), (2, 5, "c")]), threading.Event(), threading.Event()
    done: list[str] = []

    def slowly(task: str) -> None:
        writes.set()
        go.wait(60)
        done.append(task)

    writer = threading.Thread(target=lanes.run, args=(slowly,))
    writer.start()
    assert writes.wait(60)
    lanes.run(done.append)
    go.set()
    writer.join()
    lanes.run(done.append)
    assert done == ["c", "a", "b"]


def test_each_task_is_done_once() -> None:
    tasks = [(number % 3, number, number) for number in range(40)]
    lanes = Lanes(tasks)
    assert sorted(in_parallel(lambda _: lanes.run(lambda task: task), tasks)) == list(range(40))
