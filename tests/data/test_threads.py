"""Work in threads: in order, never far ahead of who takes it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from peftbench.data.threads import in_order, of_all


def test_results_come_in_the_order_of_the_items() -> None:
    later = threading.Event()

    def act(item: int) -> int:
        if item == 0:
            assert later.wait(30)
        later.set()
        return 10 * item

    with ThreadPoolExecutor(2) as pool:
        assert list(in_order(pool, act, range(5), window=3)) == [0, 10, 20, 30, 40]
        assert list(in_order(pool, act, [7], window=3)) == [70]
        assert list(in_order(pool, act, [], window=3)) == []


def test_no_more_items_are_asked_for_than_the_window_holds() -> None:
    asked: list[int] = []

    def items() -> Iterator[int]:
        for item in range(10**9):
            asked.append(item)
            yield item

    with ThreadPoolExecutor(2) as pool:
        results = in_order(pool, str, items(), window=3)
        assert asked == []
        assert next(results) == "0"
        assert asked == [0, 1, 2]
        assert [next(results), next(results)] == ["1", "2"]
        assert asked == [0, 1, 2, 3, 4]
        results.close()


def test_an_error_comes_in_its_turn_and_what_has_not_begun_is_not_done() -> None:
    done: list[int] = []
    go_on = threading.Event()

    def act(item: int) -> int:
        if item == 1:
            raise ZeroDivisionError(item)
        if item == 2:  # keeps the only thread until the caller has stopped
            assert go_on.wait(30)
        done.append(item)
        return item

    with ThreadPoolExecutor(1) as pool:
        results = in_order(pool, act, range(100), window=50)
        assert next(results) == 0
        with pytest.raises(ZeroDivisionError, match=r"^1$"):
            next(results)
        go_on.set()
    assert done in ([0], [0, 2])  # the third may have begun


def test_what_has_not_begun_when_the_caller_stops_is_never_done() -> None:
    done: list[int] = []
    go_on = threading.Event()

    def act(item: int) -> None:
        if item == 1:
            assert go_on.wait(30)
        done.append(item)

    with ThreadPoolExecutor(1) as pool:
        results = in_order(pool, act, range(100), window=50)
        next(results)
        results.close()
        go_on.set()
    assert done in ([0], [0, 1])  # the second may have begun


def test_short_work_is_done_on_every_item_in_order_and_its_first_error_is_raised() -> None:
    assert of_all(str, range(200)) == [str(item) for item in range(200)]
    assert of_all(str, []) == []

    def act(item: int) -> int:
        if item in (70, 199):
            raise ZeroDivisionError(item)
        return item

    with pytest.raises(ZeroDivisionError, match=r"^70$"):
        of_all(act, range(200))
