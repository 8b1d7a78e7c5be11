from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from defeat import timing
from defeat.timing import PHASES, CudaClock, HostClock, Recorder, phase


class FakeClock:
    """Goes on by the seconds that a test says, and notes whether it was waited for."""

    def __init__(self) -> None:
        self.time = 0.0
        self.waits = 0

    def now(self) -> float:
        return self.time

    def wait(self) -> None:
        self.waits += 1

    def seconds(self, start: float, end: float) -> float:
        return end - start


@pytest.fixture
def clock() -> Iterator[FakeClock]:
    yield FakeClock()
    assert timing._mark is None, "a test has left its recorder running"


def test_the_time_of_an_inner_part_is_not_that_of_the_outer_one(clock: FakeClock) -> None:
    recorder = Recorder(clock)
    recorder.start()
    clock.time += 1  # other
    with phase("losses"):
        clock.time += 10
        with phase("teacher"):
            clock.time += 100
            with phase("teacher"):
                clock.time += 200
        clock.time += 20
    clock.time += 2  # other
    recorder.end_step()
    recorder.stop()
    assert recorder.steps() == [{"other": 3, "losses": 30, "teacher": 300}]
    assert clock.waits == 1


def test_steps_touch_each_other_and_their_parts_add_up_to_them(clock: FakeClock) -> None:
    recorder = Recorder(clock)
    clock.time = 7.0
    recorder.start()
    for length in (1, 2):
        for i, name in enumerate(PHASES):
            with phase(name):
                clock.time += length * 2**i
            clock.time += 1000
        recorder.end_step()
    recorder.stop()
    first, second = recorder.steps()
    assert first == {name: 2**i + 7000 * (name == "other") for i, name in enumerate(PHASES)}
    assert second == {name: 2 * 2**i + 7000 * (name == "other") for i, name in enumerate(PHASES)}
    assert sum(first.values()) + sum(second.values()) == clock.time - 7.0


def test_a_step_that_ends_within_a_part_shares_it_with_the_next(clock: FakeClock) -> None:
    recorder = Recorder(clock)
    recorder.start()
    with phase("data"):
        clock.time += 1
        recorder.end_step()
        clock.time += 2
    clock.time += 4
    recorder.end_step()
    recorder.stop()
    assert recorder.steps() == [{"other": 0, "data": 1}, {"data": 2, "other": 4}]


def test_what_is_stopped_before_its_end_is_forgotten_and_the_rest_goes_on(clock: FakeClock) -> None:
    recorder = Recorder(clock)
    recorder.start()
    clock.time += 1
    recorder.end_step()
    with phase("student"):
        clock.time += 10
        recorder.stop()  # a validation begins, say
        with phase("data"):
            clock.time += 100
    assert not recorder.running
    recorder.start()
    clock.time += 2
    recorder.end_step()
    recorder.stop()
    assert recorder.steps() == [{"other": 1}, {"other": 2}]


def test_a_part_that_fails_is_over(clock: FakeClock) -> None:
    recorder = Recorder(clock)
    recorder.start()

    def work() -> None:
        with phase("backward"):
            clock.time += 1
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        work()
    clock.time += 2
    recorder.end_step()
    recorder.stop()
    assert recorder.steps() == [{"other": 2, "backward": 1}]


def test_without_a_recorder_nothing_is_made() -> None:
    assert phase("teacher") is phase("data")


def test_the_clock_of_the_host_goes_on() -> None:
    clock = HostClock()
    before = clock.now()
    assert clock.seconds(before, before) == 0
    assert clock.seconds(before, clock.now()) >= 0


class FakeEvent:
    """Stands in for ``torch.cuda.Event``: the device gets to the n-th event after n^2 milliseconds."""

    made = 0
    synchronised = False

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing
        self.number: int | None = None

    def record(self) -> None:
        FakeEvent.made += 1
        self.number = FakeEvent.made

    def elapsed_time(self, end: FakeEvent) -> float:
        assert FakeEvent.synchronised, "read before the device was there"
        assert self.number is not None
        assert end.number is not None
        return float(end.number**2 - self.number**2)


def test_on_cuda_events_mark_the_parts_and_are_read_after_one_synchronisation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[int] = []

    def synchronize() -> None:
        waits.append(FakeEvent.made)
        FakeEvent.synchronised = True

    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(FakeEvent, "made", 0)
    monkeypatch.setattr(FakeEvent, "synchronised", False)
    recorder = Recorder(CudaClock())
    recorder.start()  # event 1
    for _ in range(2):
        with phase("student"):  # events 2 and 3; 5 and 6
            pass
        recorder.end_step()  # events 4 and 7
    recorder.stop()
    assert waits == []
    steps = recorder.steps()
    assert waits == [7]
    assert steps == [
        {"other": pytest.approx(((4 - 1) + (16 - 9)) / 1e3), "student": pytest.approx((9 - 4) / 1e3)},
        {"other": pytest.approx(((25 - 16) + (49 - 36)) / 1e3), "student": pytest.approx((36 - 25) / 1e3)},
    ]
