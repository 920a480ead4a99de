import asyncio
import gc
import logging
import subprocess
import sys
import threading
import time

import pytest

from bespeak.deadline import Deadline, Late
from bespeak.proxy.bounds import Bounds, Breaker, Busy

FOREVER_MS = 600_000
SHORT_MS = 200


@pytest.fixture
def bounds():
    bounds = Bounds(1)
    yield bounds
    bounds.close()


class Hanging:
    """Ignores its deadline until it is let go."""

    def __init__(self):
        self.let_go = threading.Event()
        self.begun = 0

    def __call__(self, deadline):
        self.begun += 1
        assert self.let_go.wait(60)


def until_over(deadline):
    """Works until its deadline, then returns what it did."""
    while not deadline.over:
        time.sleep(0.001)
    return "what was done"


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


async def as_soon_as_possible(bounds, function):
    while True:
        try:
            return await bounds.run(function, FOREVER_MS)
        except Busy:
            await asyncio.sleep(0.001)


def test_a_run_returns_its_functions_result(bounds):
    assert asyncio.run(bounds.run(lambda deadline: 7, FOREVER_MS)) == 7


def test_a_run_and_all_it_calls_know_the_deadline(bounds):
    def look(deadline):
        return deadline.left_s, Deadline.current() is deadline, threading.current_thread() is threading.main_thread()

    left_s, is_current, is_main = asyncio.run(bounds.run(look, FOREVER_MS))
    assert 0 < left_s <= FOREVER_MS / 1000
    assert (is_current, is_main) == (True, False)


@pytest.mark.parametrize("error", [ValueError("odd"), Late("too late"), KeyboardInterrupt(), MemoryError()])
def test_an_exception_of_the_function_is_raised(bounds, error):
    def fail(deadline):
        raise error

    async def main():
        with pytest.raises(type(error)) as caught:
            await bounds.run(fail, FOREVER_MS)
        assert caught.value is error
        assert await bounds.run(lambda deadline: 7, FOREVER_MS) == 7

    asyncio.run(main())


def test_a_stop_iteration_becomes_a_runtime_error(bounds):
    with pytest.raises(RuntimeError, match="StopIteration"):
        asyncio.run(bounds.run(lambda deadline: next(iter(())), FOREVER_MS))


def test_a_result_ready_by_the_deadline_is_returned():
    bounds = Bounds(1, grace_s=60)
    assert asyncio.run(bounds.run(until_over, SHORT_MS)) == "what was done"
    bounds.close()


def test_a_run_that_ignores_its_deadline_is_late(bounds):
    hanging = Hanging()

    async def main():
        with pytest.raises(Late, match="not done in 200 ms"):
            await bounds.run(hanging, SHORT_MS)
        hanging.let_go.set()

    asyncio.run(main())


def test_nothing_starts_without_time(bounds):
    begun = []

    async def main():
        for _ in range(300):
            with pytest.raises((Late, Busy)):
                await bounds.run(begun.append, 0)

    asyncio.run(main())
    bounds.close()
    assert begun == []


def test_at_most_runs_functions_run_at_once():
    bounds = Bounds(3)
    running, most = [], []

    def work(deadline):
        running.append(deadline)
        most.append(len(running))
        time.sleep(0.002)
        running.remove(deadline)

    async def main():
        await asyncio.gather(*(bounds.run(work, FOREVER_MS) for _ in range(60)))

    asyncio.run(main())
    bounds.close()
    assert len(most) == 60
    assert max(most) <= 3


def test_a_run_that_cannot_start_in_time_never_starts(bounds):
    hanging, begun = Hanging(), []

    async def main():
        first = asyncio.create_task(bounds.run(hanging, FOREVER_MS))
        await until(lambda: hanging.begun)
        with pytest.raises(Busy, match="could start within 200 ms"):
            await bounds.run(begun.append, SHORT_MS)
        hanging.let_go.set()
        await first
        await bounds.run(lambda deadline: None, FOREVER_MS)

    asyncio.run(main())
    assert begun == []


def test_a_waiting_run_starts_when_another_ends(bounds):
    hanging = Hanging()

    async def main():
        first = asyncio.create_task(bounds.run(hanging, FOREVER_MS))
        await until(lambda: hanging.begun)
        second = asyncio.create_task(bounds.run(lambda deadline: 7, FOREVER_MS))
        await asyncio.sleep(0.02)
        assert not second.done()
        hanging.let_go.set()
        assert await second == 7
        await first

    asyncio.run(main())


def test_hanging_runs_take_no_more_threads_and_no_more_time():
    bounds, hanging = Bounds(2), Hanging()

    async def main():
        late = await asyncio.gather(*(bounds.run(hanging, SHORT_MS) for _ in range(2)), return_exceptions=True)
        assert [type(error) for error in late] == [Late, Late]
        threads = threading.active_count()
        for _ in range(100):
            with pytest.raises(Busy, match="all 2 that may run at once are long past their deadline"):
                await bounds.run(hanging, FOREVER_MS)
        assert threading.active_count() == threads
        hanging.let_go.set()
        assert await as_soon_as_possible(bounds, lambda deadline: 7) == 7

    asyncio.run(main())
    bounds.close()
    assert hanging.begun == 2


def test_other_threads_work_while_one_hangs():
    bounds, hanging = Bounds(2), Hanging()

    async def main():
        with pytest.raises(Late):
            await bounds.run(hanging, SHORT_MS)
        assert await asyncio.gather(*(bounds.run(lambda deadline: 7, FOREVER_MS) for _ in range(5))) == [7] * 5
        hanging.let_go.set()

    asyncio.run(main())
    bounds.close()


def test_a_client_that_goes_away_stops_the_work(bounds):
    begun, ended = threading.Event(), threading.Event()

    def work(deadline):
        with deadline.ending(ended.set):
            begun.set()
            assert ended.wait(60)

    async def main():
        task = asyncio.create_task(bounds.run(work, FOREVER_MS))
        await until(begun.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await bounds.run(lambda deadline: ended.is_set(), FOREVER_MS)

    asyncio.run(main())


def test_a_client_that_goes_away_while_waiting_takes_no_turn(bounds):
    hanging, begun = Hanging(), []

    async def main():
        first = asyncio.create_task(bounds.run(hanging, FOREVER_MS))
        await until(lambda: hanging.begun)
        second = asyncio.create_task(bounds.run(begun.append, FOREVER_MS))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        hanging.let_go.set()
        await first
        await bounds.run(lambda deadline: None, FOREVER_MS)

    asyncio.run(main())
    assert begun == []


def test_a_run_that_ends_after_everybody_gave_up_logs_nothing(bounds, caplog):
    """Also if its event loop has ended before."""
    hanging = Hanging()

    def fail_late(deadline):
        hanging(deadline)
        raise ValueError("too late to matter")

    async def main():
        with pytest.raises(Late):
            await bounds.run(fail_late, SHORT_MS)

    with caplog.at_level(logging.DEBUG):
        asyncio.run(main(), debug=False)
        hanging.let_go.set()
        assert asyncio.run(as_soon_as_possible(bounds, lambda deadline: 7)) == 7
        gc.collect()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_fault_as_the_client_goes_away_logs_nothing(bounds, caplog):
    hanging = Hanging()

    def fail(deadline):
        hanging(deadline)
        raise ValueError("nobody listens")

    async def main():
        task = asyncio.create_task(bounds.run(fail, FOREVER_MS))
        await until(lambda: hanging.begun)
        hanging.let_go.set()
        time.sleep(0.1)  # the loop hears of both at once
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    gc.collect()
    assert caplog.records == []


def test_closing_stops_what_runs_and_lets_nothing_start(bounds):
    begun, never = threading.Event(), []

    def work(deadline):
        begun.set()
        return until_over(deadline)

    async def main():
        running = asyncio.create_task(bounds.run(work, FOREVER_MS))
        await until(begun.is_set)
        waiting = asyncio.create_task(bounds.run(never.append, FOREVER_MS))
        await asyncio.sleep(0)
        bounds.close()
        assert await running == "what was done"
        with pytest.raises(Busy):
            await waiting
        with pytest.raises(Busy, match="closing"):
            await bounds.run(never.append, FOREVER_MS)

    asyncio.run(main())
    assert never == []
    bounds.close()


def test_a_process_ends_although_a_run_hangs():
    script = """
import asyncio, threading
from bespeak.deadline import Late
from bespeak.proxy.bounds import Bounds
bounds = Bounds(1)
try:
    asyncio.run(bounds.run(lambda deadline: threading.Event().wait(), 500))
except Late:
    print("late")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "late\n", "")


def test_at_least_one_may_run():
    with pytest.raises(ValueError, match="at least 1"):
        Bounds(0)
    assert Bounds().runs >= 1


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def breaker(clock):
    return Breaker(faults=3, rest_s=30, clock=clock)


def fail(breaker, times):
    for _ in range(times):
        breaker.failed()


def test_a_breaker_stops_after_faults_in_a_row(breaker):
    fail(breaker, 2)
    assert (breaker.open, breaker.admits()) == (False, True)
    fail(breaker, 1)
    assert (breaker.open, breaker.admits()) == (True, False)


def test_a_success_resets_the_count(breaker):
    fail(breaker, 2)
    breaker.succeeded()
    fail(breaker, 2)
    assert breaker.admits()


def test_after_the_rest_one_try_is_admitted(breaker, clock):
    fail(breaker, 3)
    clock.now += 29
    assert not breaker.admits()
    clock.now += 1
    assert not breaker.open
    assert [breaker.admits() for _ in range(3)] == [True, False, False]


def test_a_try_that_succeeds_closes_it(breaker, clock):
    fail(breaker, 3)
    clock.now += 30
    assert breaker.admits()
    breaker.succeeded()
    assert [breaker.admits() for _ in range(3)] == [True, True, True]
    fail(breaker, 2)
    assert not breaker.open


def test_a_try_that_fails_starts_another_rest(breaker, clock):
    fail(breaker, 3)
    clock.now += 30
    assert breaker.admits()
    clock.now += 20
    breaker.failed()
    clock.now += 29
    assert not breaker.admits()
    clock.now += 1
    assert breaker.admits()


def test_a_try_that_never_reports_is_followed_by_another(breaker, clock):
    fail(breaker, 3)
    clock.now += 30
    assert breaker.admits()
    clock.now += 30
    assert breaker.admits()
