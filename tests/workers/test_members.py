"""What befalls single actors of a fleet: frozen, stuck, starved, leaking, out of step, unreachable, too many or too few.

Each fault is injected into real processes; each test says what must come out in spite of it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import ActorUnavailableError
from throng.workers import member as member_module
from throng.workers.fleet import Failure, Fleet, FleetError, Rules
from throng.workers.member import Member, State

pytestmark = pytest.mark.usefixtures("a_ray")
STUCK = 2.0  # seconds without an answer after which these tests call an actor stuck; it may well be wrong about that


def _fake() -> Any:
    class Fake:  # local, so that Ray sends it by value
        """Adds what it is told to a sum that the fleet restores."""

        def __init__(self, folder: Path, start: str = "") -> None:
            self.folder = folder
            self.sum = -1000
            self.hoard: list[bytearray] = []
            if start and not self.first(start):
                time.sleep(3600)

        def first(self, mark: str) -> bool:
            """Whether nobody has left this mark before."""
            path = self.folder / mark
            met = path.exists()
            path.touch()
            return met

        def load(self, value: int) -> int:
            self.sum = value
            return os.getpid()

        def add(self, value: int) -> int:
            self.sum += value
            return self.sum

        def spoil(self, mark: str, value: int) -> int:
            """Loses its state the first time, and says so."""
            if not self.first(mark):
                self.sum = 7_000_000
                raise ValueError("spoilt")
            return self.add(value)

        def refuse(self, value: int) -> int:
            raise ValueError(f"{value} again")

        def stick(self, mark: str, value: int) -> int:
            """Sleeps in C the first time, with the interpreter's lock: nothing else in the process moves."""
            import ctypes

            if not self.first(mark):
                ctypes.PyDLL(None).sleep(3600)
            return value

        def starve(self, mark: str, value: int) -> int:
            """Asks for more memory than it may have the first time."""
            import resource

            if not self.first(mark):
                resource.setrlimit(resource.RLIMIT_AS, (self.memory(), resource.RLIM_INFINITY))
                try:
                    bytearray(1 << 30)
                finally:
                    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            return value

        def fail(self, mark: str, value: int) -> float:
            return value if self.first(mark) else float("nan")

        def grow(self, mebibytes: int) -> int:
            self.hoard.append(bytearray(os.urandom(1) * (mebibytes << 20)))
            return os.getpid()

        def memory(self) -> int:
            return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        def pid(self) -> int:
            return os.getpid()

        def part(self) -> None:
            (self.folder / f"parted.{os.getpid()}").touch()
            if (self.folder / "clings").exists():
                time.sleep(3600)

    return ray.remote(Fake)


MakeFleet = Callable[..., Fleet]


@pytest.fixture
def make_fleet(marks: Path) -> Iterator[MakeFleet]:
    made: list[Fleet] = []
    fake = _fake()

    def make(size: int = 1, stuck: str = "", cpus: float = 0.5, state: int = 0, **rules: Any) -> Fleet:
        rules = {"deadline": 300.0, **rules}
        create = fake.options(num_cpus=cpus, max_task_retries=0).remote
        made.append(
            Fleet("fake", lambda: create(marks, stuck), size, Rules(**rules), lambda: ("load", (state,)), "part")
        )
        return made[-1]

    yield make
    for fleet in made:
        fleet.close()


def _until(fleet: Fleet, true: Callable[[], bool]) -> None:
    """Lets the fleet look after its members until something is true."""
    until = time.monotonic() + 120
    while not true():
        assert time.monotonic() < until, "it never came true"
        fleet._hear(0.1)


def _all(fleet: Fleet, method: str, *calls: tuple[Any, ...], **settings: Any) -> list[Any]:
    """Results in the order of asking."""
    found = dict(fleet.run(method, list(enumerate(calls)), **settings))
    return [found[i] for i in range(len(calls))]


def _kill(member: Member) -> None:
    """Ends its process, and waits for that: `ray.kill` returns before, and the process may answer once more."""
    process = ray.get(member.actor.pid.remote())
    os.kill(process, signal.SIGKILL)
    status = Path(f"/proc/{process}/status")
    while status.exists() and "zombie" not in status.read_text():
        time.sleep(0.02)


def _healthy(fleet: Fleet) -> list[Member]:
    return [member for member in fleet._members if member.state is State.HEALTHY]


def test_a_frozen_process_is_replaced(make_fleet: MakeFleet) -> None:
    """SIGSTOP, as a machine that swaps: it neither answers nor dies, and does not even hear that it is to end."""
    fleet = make_fleet(deadline=STUCK)
    (process,) = _all(fleet, "pid", ())
    os.kill(process, signal.SIGSTOP)
    (other,) = _all(fleet, "pid", ())
    assert other != process
    assert fleet.restarts >= 1
    _until(fleet, lambda: not Path(f"/proc/{process}").exists())


def test_an_actor_stuck_in_c_is_replaced(make_fleet: MakeFleet) -> None:
    """SUMO in an endless loop holds the interpreter's lock: no exception, no signal handler, no thread gets through."""
    fleet = make_fleet(deadline=STUCK, restarts=20)
    assert _all(fleet, "stick", ("mark", 5), ("other", 6)) == [5, 6]
    assert fleet.restarts >= 2


def test_an_actor_that_does_not_start_is_replaced(make_fleet: MakeFleet) -> None:
    """Stuck in its constructor: a file system that hangs. It never had a call whose deadline could pass."""
    fleet = make_fleet(stuck="begun", start=STUCK)
    assert _all(fleet, "add", (3,)) == [3]
    assert fleet.restarts >= 1


def test_the_state_is_restored_before_anything_is_asked(make_fleet: MakeFleet) -> None:
    """In a fresh actor, in one that raised, in one after a death: the sum starts from what the fleet says."""
    fleet = make_fleet(state=100, in_flight=1)
    assert _all(fleet, "add", (1,)) == [101]
    assert _all(fleet, "spoil", ("mark", 1)) == [101], "what it had become when it raised must not count"
    _kill(fleet._members[0])
    assert _all(fleet, "add", (5,)) == [105]
    assert fleet.restarts == 1


def test_results_that_are_no_numbers_are_refused(make_fleet: MakeFleet) -> None:
    """NaN once is tried again; NaN for ever is a failure with its reason, never a result."""

    def check(result: float) -> str:
        return "not a number" if result != result else ""  # NaN alone is unlike itself

    fleet = make_fleet()
    assert _all(fleet, "fail", ("a", 4), ("b", 5), check=check) == [4, 5]
    (failure,) = _all(fleet, "fail", ("c", 6), check=lambda _: "never good")
    assert failure == Failure("never good")
    assert fleet.restarts == 0


def test_a_call_short_of_memory_is_tried_again(make_fleet: MakeFleet) -> None:
    """The kernel's way out, SIGKILL, is a death like others; here the process is told, and lives."""
    fleet = make_fleet()
    assert _all(fleet, "starve", ("a", 1), ("b", 2)) == [1, 2]
    assert [error for error in fleet._errors if "MemoryError" in error]
    assert fleet.restarts == 0


def test_an_actor_that_only_raises_is_exchanged(make_fleet: MakeFleet) -> None:
    """Nothing was lost, so nothing is charged; but who raises three times in a row may be the one at fault."""
    fleet = make_fleet(restarts=0)
    (before,) = _all(fleet, "pid", ())
    assert all(isinstance(one, Failure) for one in _all(fleet, "refuse", (1,), (2,)))
    _until(fleet, lambda: len(_healthy(fleet)) == 1)
    (after,) = _all(fleet, "pid", ())
    assert after != before
    assert fleet.restarts == 0


def test_an_actor_is_exchanged_after_its_answers(make_fleet: MakeFleet, marks: Path) -> None:
    """Planned: every call is answered once, the old one tidies up, and nothing is charged."""
    fleet = make_fleet(2, answers=5, restarts=0)
    answered = _all(fleet, "pid", *[()] * 23)
    counts = [answered.count(process) for process in set(answered)]
    assert len(counts) >= 4
    assert max(counts) <= 6, "five, and what was queued behind them"
    assert fleet.restarts == 0
    _until(fleet, lambda: len(_healthy(fleet)) == 2)
    assert len(list(marks.glob("parted.*"))) >= len(counts) - 2


def test_an_answer_may_count_for_several(make_fleet: MakeFleet) -> None:
    """A message of several simulations is as many of what `workers.recycle_after` counts."""
    fleet = make_fleet(answers=4, restarts=0)
    answered = [pid for _, pid in fleet.run("pid", ((i, ()) for i in range(8)), count=lambda _: 3)]
    assert len(set(answered)) >= 3, "after two, and what was queued behind them"
    assert max(answered.count(pid) for pid in answered) <= 3


def test_nobody_waits_for_who_does_not_part(make_fleet: MakeFleet, marks: Path) -> None:
    """It hangs when it should tidy up: the run ends without it, and its seat is taken before the next."""
    (marks / "clings").touch()
    fleet = make_fleet(2, answers=2)
    began = time.monotonic()
    assert len(_all(fleet, "pid", *[()] * 4)) == 4
    assert len(_all(fleet, "pid", *[()] * 4)) == 4
    assert time.monotonic() - began < fleet.rules.deadline


def test_an_actor_that_leaks_is_exchanged(make_fleet: MakeFleet) -> None:
    """What it has after its first twenty answers is what it needs; what comes on top is a leak."""
    fleet = make_fleet(growth=64 << 20, restarts=0)
    steady = _all(fleet, "grow", *[(1,)] * 60)
    assert len(set(steady)) == 1, "forty more megabytes are allowed"
    leaking = _all(fleet, "grow", *[(4,)] * 60)
    assert len(set(leaking)) > 1
    assert leaking[-1] != steady[0]
    assert fleet.restarts == 0


def test_who_cannot_be_reached_gets_no_calls(make_fleet: MakeFleet) -> None:
    """Ray says `unavailable` when a connection breaks: the actor may live, and may even have done what it was asked."""
    fleet = make_fleet(2)
    _all(fleet, "pid", (), ())
    run = fleet.run("add", [(i, (i,)) for i in range(3)])
    victim = next(member for member in fleet._members if member.pending)
    lost: Future[Any] = Future()
    lost.set_exception(ActorUnavailableError("connection reset", None))
    fleet._take(victim, next(iter(victim.pending)), lost)
    assert victim.state is State.SUSPECT
    assert victim not in fleet._open
    found = dict(run)
    assert set(found) == {0, 1, 2}
    _until(fleet, lambda: victim.state is State.HEALTHY)
    assert fleet.restarts == 0


def test_who_stays_unreachable_is_replaced(make_fleet: MakeFleet) -> None:
    """It hangs without a call: nobody would ever notice a missed deadline."""
    fleet = make_fleet(start=60.0)
    (victim,) = fleet._members
    _until(fleet, lambda: victim.state is State.HEALTHY)
    os.kill(ray.get(victim.actor.pid.remote()), signal.SIGSTOP)
    fleet._suspect(victim)
    fleet.rules = Rules(deadline=300.0, start=STUCK)
    _until(fleet, lambda: fleet.restarts >= 1)


def test_a_fleet_goes_on_while_some_wait_for_room(make_fleet: MakeFleet) -> None:
    """Three CPUs, four seats of one: the fourth waits, is counted, is no loss, and takes over when there is room."""
    fleet = make_fleet(4, cpus=1.0, restarts=0)
    assert _all(fleet, "add", *[(0,)] * 10) == [0] * 10
    _until(fleet, lambda: len(_healthy(fleet)) == 3)
    waiting, age = fleet.waiting()
    assert waiting == 1
    assert age > 0
    fleet._retire(_healthy(fleet)[0], replace=False)
    _until(fleet, lambda: fleet.waiting()[0] == 0 and len(_healthy(fleet)) == 3)
    assert len(fleet) == 3
    assert fleet.restarts == 0


def test_a_fleet_shrinks_by_who_is_not_there(make_fleet: MakeFleet) -> None:
    """One that waits for room and one that was lost and pauses: they go at once, those at work stay."""
    fleet = make_fleet(4, cpus=1.0)
    _until(fleet, lambda: len(_healthy(fleet)) == 3)
    (waiting,) = (member for member in fleet._members if member.state is not State.HEALTHY)
    pausing = _healthy(fleet)[0]
    pausing.losses = 5
    fleet._lost(pausing, RuntimeError("gone"))
    working = _healthy(fleet)
    assert (waiting.placed, pausing.actor) == (False, None)
    fleet.resize(2)
    assert fleet._members == working
    assert len(_all(fleet, "pid", *[()] * 6)) == 6


def test_a_fleet_grows_and_shrinks(make_fleet: MakeFleet) -> None:
    """While calls are under way: none is lost, none is doubled, and who goes finishes first."""
    fleet = make_fleet(1)
    found = []
    for key, _ in fleet.run("add", [(i, (0,)) for i in range(40)]):
        found.append(key)
        if len(found) == 5:
            fleet.resize(3)
            assert len(fleet) == 3
        if len(found) == 20:
            fleet.resize(1)
            assert len(fleet) == 1
    assert sorted(found) == list(range(40))
    _until(fleet, lambda: len(fleet._members) == 1)
    assert fleet.restarts == 0


def test_lost_actors_are_followed_ever_more_slowly(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At once the first time; then after 1, 2, 4 … seconds, until one answers."""
    fleet = make_fleet(restarts=20)
    (member,) = fleet._members
    pauses = []
    for _ in range(8):
        member.lost()
        pauses.append(member.due - member.since)
    assert pauses == pytest.approx([0, 1, 2, 4, 8, 16, *[member_module.LONGEST_PAUSE] * 2], abs=1e-3)
    member.due = 0.0
    assert _all(fleet, "add", (1,)) == [1]
    assert member.losses == 0
    _kill(member)
    assert _all(fleet, "add", (1,)) == [1]
    messages = [one.getMessage() for one in caplog.records]
    assert any("fake 1 was lost: " in one and "ActorDiedError" in one for one in messages), messages


def test_the_budget_grows_with_what_was_done(make_fleet: MakeFleet) -> None:
    """A long run may lose more than a short one: every fifty answers allow one more."""
    fleet = make_fleet(restarts=0)
    assert len(_all(fleet, "add", *[(0,)] * 50)) == 50
    _kill(fleet._members[0])
    assert _all(fleet, "add", (0,)) == [0]
    _kill(fleet._members[0])
    with pytest.raises(FleetError, match="2 actors were lost, 1 are allowed"):
        _all(fleet, "add", (0,))
