"""One seat of a fleet: the actor that holds it, its state, and the calls it was given."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import ray

from .ray_internals import has_process

Question = tuple[str, tuple[Any, ...]]  # a method and its arguments
Event = tuple["Member", Any, "Future[Any]"]  # who answered, which reference, what
LONGEST_PAUSE = 30.0  # seconds before a seat that keeps losing its actor gets another


class State(enum.Enum):
    """Of a member; only a healthy one is given calls."""

    RESTORING = "restoring"  # its actor waits for resources, starts, or is brought to the fleet's state
    HEALTHY = "healthy"
    SUSPECT = "suspect"  # its last answer was an error: it has to show that it works, in the fleet's state
    RETIRED = "retired"  # ends when it has answered what it was asked


@dataclass(eq=False)
class Call:
    """A question with a key under which its answer is expected."""

    key: Hashable
    question: Question
    tries: int = 0
    alone: bool = False  # was lost with an actor: from then on it has an actor to itself
    own: bool = False  # the fleet's own question: nobody waits for it
    lent: bool = False  # its method answers in two parts: the second stays in the object store
    part: Any = None  # of a lent answer: the reference of that part


@dataclass
class Load:
    """Of a whole fleet, counted as it changes: a sum over a thousand members costs as much as the call that needs it."""

    calls: int = 0  # that members work on or have queued


class Member:
    """A seat and the actor that holds it now.

    Args:
        number: names the seat.
        create: makes an actor.
        restore: what an actor is asked before it is used: brings it to the fleet's state.
        post: hears of answers as they come, in a thread of Ray's.
        load: the fleet's.
    """

    def __init__(
        self,
        number: int,
        create: Callable[[], Any],
        restore: Callable[[], Question],
        post: Callable[[Event], None],
        load: Load,
    ) -> None:
        self.number = number
        self._create = create
        self._restore = restore
        self._post = post
        self._load = load
        self.actor: Any = None
        self.state = State.RESTORING
        self.replace = True  # when retired: by a fresh actor
        self.parted = False  # when retired: it was asked to tidy up
        self.pending: dict[Any, Call] = {}  # by object reference, oldest first
        self.probe: Any = None  # the reference of what it was asked to be restored
        self.since = 0.0  # when the oldest question became the oldest, or its state changed
        self.begun = 0.0  # when the actor was asked for
        self.placed = False  # whether the actor has resources and a process
        self.due = 0.0  # when a lost actor is to be followed by another
        self.losses = 0  # of actors, without an answer between them
        self.answers = 0  # of this actor
        self.errors = 0  # of this actor, in a row
        self.memory: int | None = None  # bytes, once this actor had worked a while

    def begin(self) -> None:
        """Starts an actor; it is restored first."""
        self.begun = time.monotonic()
        self.actor = self._create()
        self.state = State.RESTORING
        self.placed, self.parted, self.answers, self.errors, self.memory = False, False, 0, 0, None
        self.check()

    def check(self) -> None:
        """Asks the actor to restore the fleet's state."""
        method, arguments = self._restore()
        self.since = time.monotonic()
        self.probe = self._ask(method, arguments)

    def suspect(self) -> None:
        """Keeps calls from the actor until it has been restored."""
        self.state = State.SUSPECT
        self.check()

    def look(self) -> None:
        """Sees whether an actor that waited for resources has them now; its time to start begins then."""
        if not self.placed and has_process(self.actor):
            self.placed = True
            self.since = time.monotonic()

    def restored(self) -> None:
        """It may be given calls."""
        self.probe, self.placed, self.state = None, True, State.HEALTHY
        self.since = time.monotonic()

    def ask(self, call: Call) -> None:
        if not self.pending:
            self.since = time.monotonic()
        self.pending[self._ask(*call.question, call)] = call
        self._load.calls += 1

    def _ask(self, method: str, arguments: tuple[Any, ...], call: Call | None = None) -> Any:
        reference = getattr(self.actor, method).remote(*arguments)
        if call is not None and call.lent:
            reference, call.part = reference
        reference.future().add_done_callback(lambda answer: self._post((self, reference, answer)))
        return reference

    def settle(self, reference: Any) -> Call:
        """The call that was answered; the next one's time begins."""
        self.since = time.monotonic()
        self._load.calls -= 1
        return self.pending.pop(reference)

    def forget(self) -> list[Call]:
        """Nobody listens for the answers to these calls any more, oldest first."""
        calls = list(self.pending.values())
        self._load.calls -= len(calls)
        self.pending.clear()
        return calls

    def overdue(self, deadline: float, start: float) -> bool:
        """Whether its oldest call has taken longer than `deadline` seconds, or being restored longer than `start`."""
        asked, limit = next(((reference, deadline) for reference in self.pending), (self.probe, start))
        if asked is None or time.monotonic() - self.since <= limit:
            return False
        return not ray.wait([asked], timeout=0)[0]  # an answer that lies there: it is we who were away

    def vacate(self) -> list[Call]:
        """Ends the actor; returns the calls it had, oldest first."""
        if self.actor is not None:
            ray.kill(self.actor)
        calls = self.forget()
        self.actor = self.probe = None
        self.placed, self.state = False, State.RESTORING
        return calls

    def lost(self) -> list[Call]:
        """The actor is gone: the seat waits, each time twice as long, before another is tried; returns its calls."""
        calls = self.vacate()
        self.losses += 1
        pause = 0.0 if self.losses == 1 else min(LONGEST_PAUSE, 2.0 ** (self.losses - 2))
        self.since = time.monotonic()
        self.due = self.since + pause
        return calls
