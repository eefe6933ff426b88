"""Buffers among the threads of one transfer, and digests in order: nobody waits for ever, and nothing is out of order."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable

import pytest

from stores.transfer.digests import Digester
from stores.transfer.inorder import InOrder
from stores.transfer.supply import Stopped, Supply


def in_thread(call: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=call)
    thread.start()
    return thread


def buffer() -> memoryview:
    return memoryview(bytearray(1))


def test_the_lowest_piece_comes_first() -> None:
    supply, order = Supply(ordered=False), []

    def use(number: int) -> None:
        taken = supply.take(number)
        order.append(number)
        supply.give(number, taken, pressed=False)

    threads = [in_thread(lambda number=number: use(number)) for number in (3, 1, 2)]  # type: ignore[misc]
    while len(supply._waiting) < 3:
        pass
    supply.add(buffer())
    for thread in threads:
        thread.join(10)
    assert order == [1, 2, 3]


def test_the_last_buffer_is_kept_for_the_piece_that_all_wait_for() -> None:
    supply = Supply(ordered=True)
    supply.add(buffer())
    supply.add(buffer())
    high = supply.take(5)
    waiting = in_thread(lambda: supply.take(6))
    lowest = supply.take(0)
    supply.give(0, lowest, pressed=False)
    lowest = supply.take(1)
    assert waiting.is_alive()
    supply.add(high)
    waiting.join(10)
    assert not waiting.is_alive()
    assert supply.give(1, lowest, pressed=True), "it is all that piece 2 can get"


def test_a_buffer_is_given_up_where_others_need_it_and_the_transfer_can_go_on() -> None:
    ordered, free = Supply(ordered=True), Supply(ordered=False)
    for supply in (ordered, free):
        for _ in range(3):
            supply.add(buffer())
        taken = supply.take(0)
        supply.take(1)
        assert not supply.give(0, taken, pressed=True)


def test_stop_ends_all_waiting() -> None:
    supply, ended = Supply(ordered=True), []

    def wait() -> None:
        with pytest.raises(Stopped):
            supply.take(1)
        ended.append(True)

    thread = in_thread(wait)
    supply.stop()
    thread.join(10)
    assert ended == [True]


@pytest.mark.parametrize("seed", range(20))
def test_spans_in_threads_always_end_however_few_the_buffers(seed: int) -> None:
    """The pump's way of using both: spans of several pieces, digests in order, pressed now and then."""
    rng = random.Random(seed)
    pieces, span, workers, buffers = 60, rng.choice([1, 2, 4]), rng.randint(1, 5), rng.randint(1, 4)
    content = [rng.randbytes(100) for _ in range(pieces)]
    supply, digester = Supply(ordered=True), Digester(["sha256"])
    hashed = InOrder(digester)
    spans = iter(range(0, pieces, span))
    claiming = threading.Lock()
    out: list[memoryview] = []

    def done(number: int, taken: memoryview) -> None:
        if not supply.give(number, taken, pressed=random.random() < 0.3):
            out.append(taken)

    def work() -> None:
        while True:
            with claiming:
                start = next(spans, None)
            if start is None:
                return
            for number in range(start, min(start + span, pieces)):
                taken = supply.take(number)
                hashed.submit(number, iter([memoryview(content[number])]), lambda n=number, t=taken: done(n, t))  # type: ignore[misc]

    for _ in range(buffers):
        supply.add(buffer())
    threads = [in_thread(work) for _ in range(workers)]
    hashing = in_thread(hashed.run)
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    hashed.end()
    hashing.join(20)
    assert not hashing.is_alive()
    assert digester.hexdigests()["sha256"] == hashlib.sha256(b"".join(content)).hexdigest()
    assert len(out) < buffers, "one is always left to go on with"


def test_a_digest_that_is_stopped_ends() -> None:
    hashed = InOrder(Digester(["md5"]))
    hashing = in_thread(hashed.run)
    hashed.submit(1, iter([memoryview(b"never in turn")]), lambda: None)
    hashed.stop()
    hashing.join(10)
    assert not hashing.is_alive()
