"""A fleet of identical Ray actors that survives the loss of its members.

The driver owns every actor (Ray recovers nothing whose owner died). Calls are pure functions of their arguments and of a
state that the driver knows, so a call that dies with its actor is simply asked again of another; results come back in the
order they finish, keyed, each once: what an actor says that has been given up is not heard.

| event | what the fleet does |
|---|---|
| a call raises, or its result is refused | its actor restores its state; the call is tried once more, then a `Failure` |
| an actor raises again and again | a fresh one takes its place |
| an actor dies (segfault, out of memory, killed) | a fresh actor takes its place and its calls; the oldest call is blamed |
| an actor hangs past the deadline, or does not start | killed, then as above |
| an actor cannot be reached | it gets no calls until it answers; if it does not, as above |
| its node dies or is taken away | as above, but nobody is blamed and no budget is charged |
| it has answered enough calls, or its memory grew | it finishes what it has, and a fresh one takes its place |
| no resources for an actor | it is waited for, and asked for anew now and then; the others go on |
| replacements exceed the budget | `FleetError` with the last errors: something is wrong with the job, not with a machine |
"""

from __future__ import annotations

import logging
import queue
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

from .member import Call, Event, Load, Member, Question, State
from .placement import PATIENCE
from .ray_internals import lost_with_node

TRIES = 2  # of one call
ERRORS = 3  # of an actor in a row, until a fresh one takes its place
EARNED = 50  # answers that allow one more replacement
LOOK_EVERY = 20  # answers between two looks at an actor's memory
TEND_EVERY = 0.25  # seconds
FAREWELL = 5.0  # seconds that an actor may tidy up
LONGEST_REASON = 200  # characters of an error
MEMORY = "memory"  # the method of actors that a fleet asks for the bytes they have resident
log = logging.getLogger(__name__)


class FleetError(RuntimeError):
    """The restart budget is spent."""


@dataclass(frozen=True)
class Failure:
    """A call that failed `TRIES` times; `error` is what the last try raised."""

    error: str


@dataclass(frozen=True)
class Rules:
    """What a fleet's members may take, and when they are replaced."""

    deadline: float  # seconds a call may take
    start: float = 120.0  # seconds an actor with resources may take to start, or to answer when it is suspected
    patience: float = PATIENCE  # seconds an actor may wait for resources before it is asked for anew, maybe elsewhere
    restarts: int = 8  # lost actors that are replaced; one more for every 50 answers
    in_flight: int = 2  # calls queued per actor, so that an actor never waits for the driver
    answers: int | None = None  # after so many an actor is replaced as planned
    growth: int | None = None  # bytes that its memory may grow by; it then has to have a method MEMORY


@dataclass(eq=False)
class _Run:
    """Calls of one method that are under way."""

    source: Iterator[tuple[Hashable, tuple[Any, ...]] | None]
    method: str
    check: Callable[[Any], str]
    count: Callable[[Any], int]
    lent: bool
    again: deque[Call] = field(default_factory=deque)  # to be tried again
    answers: deque[tuple[Hashable, Any]] = field(default_factory=deque)
    exhausted: bool = False


class Fleet:
    """Runs keyed calls of one method on `size` actors, which hold their seats in turn.

    Args:
        name: of what it consists of, in the singular, for messages.
        create: makes one actor (a handle with the methods). Called again for every replacement; an actor whose constructor
            only returns when it can work is not used before.
        size: number of actors.
        rules: deadlines and budgets.
        restore: the question that brings an actor to the fleet's state, asked before it is used and after it raised.
        farewell: the method by which an actor that is no longer needed tidies up.
        inbox: of another fleet, whose answers are then heard while this one waits, and the other way round.
        pulse: called several times a second while answers are waited for.
    """

    def __init__(
        self,
        name: str,
        create: Callable[[], Any],
        size: int,
        rules: Rules,
        restore: Callable[[], Question],
        farewell: str = "",
        inbox: queue.SimpleQueue[tuple[Fleet, Event]] | None = None,
        pulse: Callable[[Fleet], None] = lambda _: None,
    ) -> None:
        if size < 1:
            raise ValueError("a fleet needs at least one actor")
        self.name = name
        self.rules = rules
        self.inbox = inbox or queue.SimpleQueue()
        self.restarts = 0  # actors that were lost and followed by another
        self._create = create
        self._restore = restore
        self._farewell = farewell
        self._pulse = pulse
        self._charged = 0  # restarts that count against the budget
        self._answered = 0
        self._errors: deque[str] = deque(maxlen=5)
        self._members: list[Member] = []
        self._load = Load()
        self._open: OrderedDict[Member, None] = OrderedDict()  # healthy ones with room for a call
        self._run: _Run | None = None
        self._tended = 0.0
        self._seats = 0
        self.resize(size)

    # -- size ---------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return sum(member.replace for member in self._members)

    def resize(self, size: int) -> None:
        """More actors, or fewer: those that wait for resources go first, then those with the least to do."""
        surplus = len(self) - size
        for _ in range(-surplus):
            self._seats += 1
            member = Member(self._seats, self._create, self._restore, self._post, self._load)
            self._members.append(member)
            member.begin()
        if surplus > 0:
            staying = [member for member in self._members if member.replace]
            staying.sort(key=lambda m: (m.state is State.HEALTHY, len(m.pending)))
            for member in staying[:surplus]:
                self._retire(member, replace=False)

    def waiting(self) -> tuple[int, float]:
        """How many actors wait for resources, and the seconds that the first of them has waited."""
        now = time.monotonic()
        since = [m.since for m in self._members if m.state is State.RESTORING and m.actor is not None and not m.placed]
        return len(since), max((now - one for one in since), default=0.0)

    def states(self) -> dict[State, int]:
        """How many actors are in each state."""
        states = [member.state for member in self._members]
        return {state: states.count(state) for state in State}

    @property
    def pending(self) -> int:
        """Calls that actors work on or have queued."""
        return self._load.calls

    def tend(self) -> None:
        """Looks after the actors while nobody waits for their answers."""
        self._hear(0.0)

    # -- calls --------------------------------------------------------------------------------------------------------

    def run(
        self,
        method: str,
        calls: Iterable[tuple[Hashable, tuple[Any, ...]] | None],
        check: Callable[[Any], str] = lambda _: "",
        count: Callable[[Any], int] = lambda _: 1,
        wait: bool = True,
        lent: bool = False,
    ) -> Iterator[tuple[Hashable, Any]]:
        """Yields `(key, result or Failure)` in completion order; the first calls are asked at once.

        Args:
            method: of the actors.
            calls: keys and arguments, drawn lazily, as actors have room: a generator that makes work is never far ahead.
                None says that there is none yet.
            check: what is wrong with a result; such a one counts as an error.
            count: how many answers a result is to the rules.
            wait: for answers; otherwise yields `None` when there is none yet.
            lent: the method answers in two parts (`ray.method(num_returns=2)`); only the first, which is checked, comes here,
                and the reference of the second is yielded in place of a result: for others to fetch, if it is still there.
        """
        for member in self._members:  # a run that nobody listened to until its end
            member.forget()
        self._open = OrderedDict.fromkeys(m for m in self._members if m.state is State.HEALTHY)
        run = self._run = _Run(iter(calls), method, check, count, lent)
        self._hear(0.0)
        self._dispatch(run)
        return self._answers(run, wait)

    def _answers(self, run: _Run, wait: bool) -> Iterator[Any]:
        try:
            while True:
                self._hear(0.0)
                self._dispatch(run)
                if run.answers:
                    yield run.answers.popleft()
                elif run.exhausted and not run.again and not self._busy():
                    return
                elif wait:
                    self._hear(TEND_EVERY)
                else:
                    yield None
                if self._run is not run:
                    raise RuntimeError(f"another run of the {self.name}s was begun before this one had ended")
        finally:
            if self._run is run:
                self._run = None
                for member in self._members:  # the caller stopped listening
                    member.forget()

    def _busy(self) -> bool:
        """Whether somebody waits for an answer."""
        return any(not call.own for member in self._members for call in member.pending.values())

    def _dispatch(self, run: _Run) -> None:
        """Asks as many calls as there is room for, one by one of each actor; answers not yet taken take room, too."""
        if not self._open:
            return
        room = self.rules.in_flight * len(self._members) - self.pending - len(run.answers)
        while self._open and room > 0:
            room -= 1
            call = self._next_call(run)
            if call is None:
                return
            # Only now: who was free may have been lost while another fleet made the call.
            member = next((one for one in self._open if not (call.alone and one.pending)), None)
            if member is None:
                run.again.appendleft(call)
                return
            del self._open[member]
            member.ask(call)
            self._reopen(member)

    def _reopen(self, member: Member) -> None:
        """Lets a member have more calls, if it may."""
        full = len(member.pending) >= self.rules.in_flight or any(call.alone for call in member.pending.values())
        if member.state is State.HEALTHY and not full:
            self._open[member] = None

    def _next_call(self, run: _Run) -> Call | None:
        if run.again:
            return run.again.popleft()
        if run.exhausted:
            return None
        try:
            drawn = next(run.source)
        except StopIteration:
            run.exhausted = True
            return None
        return None if drawn is None else Call(drawn[0], (run.method, drawn[1]), lent=run.lent)

    # -- answers ------------------------------------------------------------------------------------------------------

    def _post(self, event: Event) -> None:
        self.inbox.put((self, event))

    def _hear(self, patience: float) -> None:
        """Takes all answers that are there, waits up to `patience` seconds for one, and looks after the members."""
        try:
            fleet, event = self.inbox.get(timeout=patience) if patience else self.inbox.get_nowait()
            while True:
                fleet._take(*event)
                fleet, event = self.inbox.get_nowait()
        except queue.Empty:
            pass
        now = time.monotonic()
        if now - self._tended >= TEND_EVERY:
            self._tended = now
            self._tend(now)
            self._pulse(self)

    def _take(self, member: Member, reference: Any, answer: Any) -> None:
        error = answer.exception()
        if reference is member.probe:
            self._restored(member, error)
        elif reference in member.pending:
            if error is None:
                self._answered_call(member, reference, answer.result())
            elif isinstance(error, RayTaskError):
                self._raised(member, reference, repr(error.cause), str(error.cause))
            elif isinstance(error, ActorUnavailableError):
                self._repeat([member.settle(reference)])
                if member.state is State.HEALTHY:
                    self._suspect(member)
            elif isinstance(error, RayError):
                # A dead actor's calls fail in any order; it was working on the oldest.
                self._lost(member, error)
            else:
                raise error

    def _restored(self, member: Member, error: Exception | None) -> None:
        if error is None:
            retired = member.state is State.RETIRED
            member.restored()
            if retired:
                member.state = State.RETIRED
            self._reopen(member)
        elif isinstance(error, ActorUnavailableError) and member.state is State.SUSPECT:
            member.probe = None  # asked again when members are tended, until its time is up
        else:
            self._lost(member, error)

    def _answered_call(self, member: Member, reference: Any, result: Any) -> None:
        run = self._run
        call = member.pending[reference]
        if call.own:
            member.settle(reference)
            if call.key == MEMORY:
                self._weigh(member, int(result))
        elif run is not None:
            wrong = run.check(result)
            if wrong:
                self._raised(member, reference, wrong, wrong)
                return
            member.settle(reference)
            run.answers.append((call.key, call.part if call.lent else result))
            before, count = member.answers, run.count(result)
            self._answered += count
            member.answers += count
            member.errors = member.losses = 0
            rules = self.rules
            if rules.answers is not None and member.answers >= rules.answers:
                self._retire(member, replace=True)
            elif rules.growth is not None and member.answers // LOOK_EVERY > before // LOOK_EVERY:
                member.ask(Call(MEMORY, (MEMORY, ()), own=True))
        self._reopen(member)

    def _weigh(self, member: Member, memory: int) -> None:
        """Replaces an actor that leaks. What it had after its first answers is not counted: caches fill, models load."""
        if member.memory is None:
            member.memory = memory
        elif self.rules.growth is not None and memory - member.memory > self.rules.growth:
            facts = {"event": "leak", "fleet": self.name, "seat": member.number, "bytes": memory - member.memory}
            log.info("%s %d leaks", self.name, member.number, extra={"facts": facts})
            self._retire(member, replace=True)

    def _raised(self, member: Member, reference: Any, reason: str, told: str) -> None:
        call = member.settle(reference)
        if not call.own:
            call.tries += 1
            self._note(call.key, call.tries, reason)
            if call.tries < TRIES:
                self._repeat([call])
            elif self._run is not None:
                self._run.answers.append((call.key, Failure(told)))
        member.errors += 1
        if member.state is State.HEALTHY and member.errors >= ERRORS:
            self._retire(member, replace=True)
        elif member.state is State.HEALTHY:
            self._suspect(member)

    def _repeat(self, calls: list[Call]) -> None:
        if self._run is not None:
            self._run.again.extendleft(call for call in reversed(calls) if not call.own)

    # -- members ------------------------------------------------------------------------------------------------------

    def _tend(self, now: float) -> None:
        for member in list(self._members):
            if member.actor is None:
                if not member.replace:
                    self._members.remove(member)
                elif now >= member.due:
                    member.begin()
                continue
            if member.state is State.RETIRED and (
                not member.pending or (member.parted and now - member.since > FAREWELL)
            ):
                self._end(member)
                continue
            if member.state is State.RESTORING:
                member.look()
                if not member.placed and now - member.begun > self.rules.patience:
                    since = member.since
                    member.vacate()
                    member.begin()
                    member.since = since
            elif member.state is State.SUSPECT and member.probe is None:
                since = member.since
                member.check()
                member.since = since
            if (member.placed or member.state is not State.RESTORING) and member.overdue(
                self.rules.deadline, self.rules.start
            ):
                limit = self.rules.deadline if member.pending else self.rules.start
                self._lost(member, TimeoutError(f"no answer within {limit:.0f} s"))

    def _suspect(self, member: Member) -> None:
        self._close_to_calls(member)
        member.suspect()

    def _retire(self, member: Member, replace: bool) -> None:
        """It finishes what it was asked; then its seat is taken by a fresh actor, or none."""
        self._close_to_calls(member)
        member.replace = replace
        member.state = State.RETIRED
        if not member.pending:
            self._end(member)

    def _end(self, member: Member) -> None:
        if self._farewell and member.placed and not member.parted:
            member.parted = True
            member.ask(Call(self._farewell, (self._farewell, ()), own=True))
            return
        member.vacate()
        if member.replace:
            member.begin()
        else:
            self._members.remove(member)

    def _close_to_calls(self, member: Member) -> None:
        self._open.pop(member, None)

    def _lost(self, member: Member, error: Exception) -> None:
        """Puts a fresh actor in the member's place and its calls back in line."""
        self._close_to_calls(member)
        by_fate = lost_with_node(error)
        stays = member.replace
        calls = [call for call in member.lost() if not call.own]
        reason = _in_short(error)
        culprit = None
        if not by_fate:
            # The answer of the call before may have died with the actor, so blame can be wrong; nobody is given up for
            # it, as each is tried again alone.
            for call in calls:
                call.alone = True
            culprit = next(iter(calls), None)
        if culprit is not None:
            culprit.tries += 1
        self._note(culprit.key if culprit else "", culprit.tries if culprit else 0, reason)
        facts = {"event": "lost", "fleet": self.name, "seat": member.number, "reason": reason}
        if culprit is not None:
            facts |= {"key": str(culprit.key), "try": culprit.tries}
        log.warning("%s %d was lost: %s", self.name, member.number, self._errors[-1], extra={"facts": facts})
        if culprit is not None and culprit.tries >= TRIES and self._run is not None:
            self._run.answers.append((culprit.key, Failure(reason)))
            calls.remove(culprit)
        self._repeat(calls)
        if not stays:
            self._members.remove(member)
            return
        self.restarts += 1
        self._charged += not by_fate
        allowed = self.rules.restarts + self._answered // EARNED
        if self._charged > allowed:
            listed = "\n  ".join(self._errors)
            raise FleetError(
                f"{self._charged} actors were lost, {allowed} are allowed ({self.name}s; workers.restarts). Last errors:"
                f"\n  {listed}\nWhat they wrote is in the folder session_latest/logs of Ray's temporary folder"
            )
        if time.monotonic() >= member.due:
            member.begin()

    def _note(self, key: Hashable, tries: int, reason: str) -> None:
        self._errors.append(f"{key}, try {tries}: {reason}" if tries else reason)

    def close(self) -> None:
        """Ends all actors; those that answer may tidy up before."""
        if self._farewell:
            asked = [getattr(m.actor, self._farewell).remote() for m in self._members if m.state is State.HEALTHY]
            if asked:
                ray.wait(asked, num_returns=len(asked), timeout=FAREWELL)
        for member in self._members:
            member.vacate()
        self._members.clear()
        self._open.clear()


def _in_short(error: Exception) -> str:
    """One line of an error: what a constructor raised, why an actor is dead, or the first."""
    lines = str(error).splitlines() or [""]
    because = [line.strip() for line in lines if line.lstrip().startswith("The actor is dead because")]
    line = lines[-1] if getattr(error, "actor_init_failed", False) else [*because, lines[0]][0]
    return f"{type(error).__name__}: {line[:LONGEST_REASON]}"
