"""A fleet of plain fake actors that raise, die and hang where they are told to.

The fakes leave marks in a folder, so that a call knows in a fresh process how often it has been tried.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from throng.workers import fleet as fleet_module
from throng.workers import member as member_module
from throng.workers.fleet import TRIES, Failure, Fleet, FleetError, Rules
from throng.workers.member import State

pytestmark = pytest.mark.usefixtures("a_ray")
Call = tuple[str, tuple[str, str, int]]


def _fake() -> Any:
    class Fake:  # local, so that Ray sends it by value
        """Squares a number, after doing to itself what the call says, `times` times."""

        def __init__(self, folder: Path) -> None:
            self.folder = folder

        def work(self, key: str, fate: str, times: int = 0, value: int = 0) -> int:
            import os
            import time

            tries = len(list(self.folder.glob(f"{key}.*")))
            (self.folder / f"{key}.{tries}").touch()
            if tries < times:
                if fate == "raise":
                    raise ValueError(f"{key} will not")
                if fate == "exit":
                    os._exit(3)
                if fate == "hang":
                    time.sleep(3600)
            return value * value

        def process(self) -> int:
            return os.getpid()

    return ray.remote(Fake)


def _alive() -> tuple[str, tuple[Any, ...]]:
    return "process", ()


@pytest.fixture
def make_fleet(marks: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Fleet]]:
    """(size, settings) -> a fleet of fakes whose seats do not pause after a loss: how long they do is the member's."""
    monkeypatch.setattr(member_module, "LONGEST_PAUSE", 0.0)
    made: list[Fleet] = []
    fake = _fake()

    def make(size: int = 2, **settings: Any) -> Fleet:
        create = settings.pop("create", lambda: fake.options(num_cpus=0.5, max_task_retries=0).remote(marks))
        restore = settings.pop("restore", _alive)
        fleet = Fleet("worker", create, size, Rules(settings.pop("deadline", 300.0), **settings), restore)
        made.append(fleet)
        return fleet

    yield make
    for fleet in made:
        fleet.close()


def _calls(fates: dict[str, tuple[str, int]], count: int) -> list[tuple[str, tuple[Any, ...]]]:
    """Calls k0, k1, …, those in `fates` with their fate and how often it strikes."""
    return [(f"k{i}", (f"k{i}", *fates.get(f"k{i}", ("none", 0)), i)) for i in range(count)]


def _tries(marks: Path) -> Counter[str]:
    return Counter(path.name.partition(".")[0] for path in marks.iterdir())


def _collect(results: Iterator[tuple[Any, Any]], found: dict[Any, Any] | None = None) -> dict[Any, Any]:
    """All results by key, put into `found` as they come; no key twice."""
    found = {} if found is None else found
    for key, value in results:
        assert key not in found, "a call was answered twice"
        found[key] = value
    return found


def _squares(count: int) -> dict[str, int]:
    return {f"k{i}": i * i for i in range(count)}


def test_every_call_is_answered_once_under_its_key(make_fleet: Callable[..., Fleet], marks: Path) -> None:
    fleet = make_fleet(3)
    assert len(fleet) == 3
    assert _collect(fleet.run("work", _calls({}, 20))) == _squares(20)
    assert _tries(marks) == Counter(_squares(20).keys())
    assert _collect(fleet.run("work", [])) == {}
    assert fleet.restarts == 0


@pytest.mark.parametrize("in_flight", [1, 2, 4])
def test_work_is_made_no_faster_than_it_is_done(make_fleet: Callable[..., Fleet], in_flight: int) -> None:
    """The source is a generator that learns policies: drawn ahead without bound, it would fill the memory."""
    drawn = 0

    def source() -> Iterator[tuple[str, tuple[Any, ...]]]:
        nonlocal drawn
        for call in _calls({}, 24):
            drawn += 1
            yield call

    fleet = make_fleet(2, in_flight=in_flight)
    answered = 0
    for _ in fleet.run("work", source()):
        answered += 1
        assert drawn - answered < 2 * in_flight
    assert answered == drawn == 24


def test_a_call_that_raises_once_is_tried_again(make_fleet: Callable[..., Fleet], marks: Path) -> None:
    """The actor lives: nothing is restarted."""
    fleet = make_fleet()
    assert _collect(fleet.run("work", _calls({"k3": ("raise", 1), "k7": ("raise", 1)}, 10))) == _squares(10)
    assert _tries(marks)["k3"] == _tries(marks)["k7"] == 2
    assert fleet.restarts == 0


def test_a_call_that_always_raises_is_reported(make_fleet: Callable[..., Fleet], marks: Path) -> None:
    """It costs its own result, with the reason, and nobody else's."""
    fleet = make_fleet()
    found = _collect(fleet.run("work", _calls({"k4": ("raise", 99)}, 10)))
    failure = found.pop("k4")
    assert isinstance(failure, Failure)
    assert "k4 will not" in failure.error
    assert found == {key: value for key, value in _squares(10).items() if key != "k4"}
    assert _tries(marks)["k4"] == TRIES
    assert fleet.restarts == 0


def test_actors_that_die_are_replaced(make_fleet: Callable[..., Fleet]) -> None:
    """As a segfault would end them, three times: all calls are answered exactly once."""
    fleet = make_fleet()
    fates = {f"k{i}": ("exit", 1) for i in (0, 5, 9)}
    assert _collect(fleet.run("work", _calls(fates, 12))) == _squares(12)
    assert fleet.restarts == 3
    assert len(fleet) == 2


def test_a_killed_process_is_replaced(make_fleet: Callable[..., Fleet]) -> None:
    """From outside, as the kernel does when memory is short."""
    fleet = make_fleet(2)
    results = fleet.run("work", _calls({}, 16))
    found = dict([next(results)])
    victim = fleet._members[0].actor
    os.kill(ray.get(victim.process.remote()), signal.SIGKILL)
    found |= _collect(results)
    assert found == _squares(16)
    assert fleet.restarts <= 1  # 0 if it had no call left


@pytest.mark.parametrize("poison", [["k1"], ["k2", "k3", "k8"]])
def test_a_poisonous_call_is_given_up_and_nobody_else(
    make_fleet: Callable[..., Fleet], marks: Path, poison: list[str]
) -> None:
    """It kills each actor it meets. The innocent call queued behind it dies with it and must not be blamed."""
    fleet = make_fleet(2, in_flight=3, restarts=20)
    found = _collect(fleet.run("work", _calls({key: ("exit", 99) for key in poison}, 12)))
    for key in poison:
        failure = found.pop(key)
        assert isinstance(failure, Failure)
        assert "Actor" in failure.error
    assert found == {key: value for key, value in _squares(12).items() if key not in poison}
    tries = [_tries(marks)[key] for key in poison]
    assert fleet.restarts == sum(tries)
    assert all(TRIES <= n <= TRIES + 1 for n in tries), "once more if its neighbour was blamed for it"


class _Clock:
    """The fleet's clock, moved by hand: no test depends on how fast this machine is."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr(fleet_module, "time", clock)
    monkeypatch.setattr(member_module, "time", clock)
    return clock


def _hang_is_seen(clock: _Clock, mark: Path, before: set[str], found: dict[Any, Any]) -> threading.Thread:
    """Moves the clock past the deadline once the call that leaves `mark` hangs.

    Not before the fleet has settled the calls `before` it: each of those sets the hanging call's clock anew.
    """

    def wait() -> None:
        while not (mark.exists() and before <= found.keys()):
            time.sleep(0.02)
        clock.now += 5.0

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_a_hanging_call_is_killed_and_tried_again(make_fleet: Callable[..., Fleet], marks: Path, clock: _Clock) -> None:
    """Past the deadline its actor goes; the calls queued behind it are answered by the fresh one."""
    fleet = make_fleet(1, deadline=1.0)
    found: dict[str, int] = {}
    thread = _hang_is_seen(clock, marks / "k2.0", {"k0", "k1"}, found)
    assert _collect(fleet.run("work", _calls({"k2": ("hang", 1)}, 6)), found) == _squares(6)
    thread.join()
    assert fleet.restarts == 1
    assert _tries(marks)["k2"] == 2


def test_a_call_that_always_hangs_is_reported(make_fleet: Callable[..., Fleet], marks: Path, clock: _Clock) -> None:
    fleet = make_fleet(1, deadline=1.0)
    found: dict[str, Any] = {}
    threads = [_hang_is_seen(clock, marks / f"k1.{n}", {"k0"}, found) for n in (0, 1)]
    _collect(fleet.run("work", _calls({"k1": ("hang", 99)}, 4)), found)
    for thread in threads:
        thread.join()
    failure = found.pop("k1")
    assert isinstance(failure, Failure)
    assert "no answer within 1 s" in failure.error
    assert found == {key: value for key, value in _squares(4).items() if key != "k1"}
    assert fleet.restarts == 2


def test_a_consumer_may_take_its_time(make_fleet: Callable[..., Fleet], clock: _Clock) -> None:
    """Training between two results can take longer than any call: answers that wait are not answers that fail."""
    fleet = make_fleet(2, deadline=1.0)
    while any(member.state is not State.HEALTHY for member in fleet._members):
        fleet._hear(0.1)
    found = {}
    for key, value in fleet.run("work", _calls({}, 12)):
        found[key] = value
        waiting = [reference for member in fleet._members for reference in member.pending]
        ray.wait(waiting, num_returns=len(waiting), timeout=60)
        clock.now += 100.0
    assert found == _squares(12)
    assert fleet.restarts == 0


def test_a_spent_budget_ends_the_run_and_says_why(make_fleet: Callable[..., Fleet]) -> None:
    """Endless replacements would hide that the job itself is at fault; the error names calls and reasons."""
    fleet = make_fleet(1, restarts=2)
    fates = {f"k{i}": ("exit", 99) for i in range(6)}
    with pytest.raises(FleetError, match=r"3 actors were lost, 2 are allowed") as caught:
        _collect(fleet.run("work", _calls(fates, 6)))
    for blamed in ("k0, try 1", "k0, try 2", "k1, try 1"):
        assert f"{blamed}: ActorDiedError: The actor is dead because" in str(caught.value)


def test_an_actor_that_cannot_be_made_ends_the_run(make_fleet: Callable[..., Fleet]) -> None:
    """A broken constructor kills every replacement too."""

    class Broken:
        def __init__(self) -> None:
            raise RuntimeError("no network file")

        def process(self) -> int:
            return 1

    broken = ray.remote(Broken)
    fleet = make_fleet(1, restarts=1, create=lambda: broken.options(num_cpus=0.5).remote())
    with pytest.raises(FleetError, match=r"2 actors were lost, 1 are allowed \(workers;(.|\n)*no network file"):
        list(fleet.run("work", [("a", ()), ("b", ())]))


def test_a_consumer_that_stops_leaves_the_fleet_usable(make_fleet: Callable[..., Fleet]) -> None:
    """What was under way is forgotten: its answers must not turn up among those of the next run."""
    fleet = make_fleet(2)
    for _ in fleet.run("work", _calls({}, 10)):
        break
    again = [(f"n{i}", (f"n{i}", "none", 0, i)) for i in range(8)]
    assert _collect(fleet.run("work", again)) == {f"n{i}": i * i for i in range(8)}
    assert fleet.restarts == 0


def test_a_source_that_breaks_is_heard(make_fleet: Callable[..., Fleet]) -> None:
    """Its error reaches the consumer, and the fleet can be used again."""

    def source() -> Iterator[tuple[str, tuple[Any, ...]]]:
        yield from _calls({}, 3)
        raise KeyError("no such candidate")

    fleet = make_fleet(2)
    with pytest.raises(KeyError, match="no such candidate"):
        list(fleet.run("work", source()))
    assert _collect(fleet.run("work", _calls({}, 4))) == _squares(4)


def test_a_fleet_has_members(make_fleet: Callable[..., Fleet]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        make_fleet(0)


def test_closing_ends_the_processes(make_fleet: Callable[..., Fleet]) -> None:
    """Actors left behind would hold their CPUs for the rest of the session."""
    fleet = make_fleet(2)
    processes = [ray.get(member.actor.process.remote()) for member in fleet._members]
    fleet.close()
    assert len(fleet) == 0
    for process in processes:
        while Path(f"/proc/{process}").exists() and "zombie" not in Path(f"/proc/{process}/status").read_text():
            time.sleep(0.02)
