"""A fleet of identical Ray actors that survives the loss of its members.

The driver owns every actor (Ray recovers nothing whose owner died). Calls are pure functions of their arguments, so a call
that dies with its actor is simply asked again of another; results come back in the order they finish, keyed.

| event | what the fleet does |
|---|---|
| the call raises | the actor lives; the call is tried once more, then reported as a `Failure` |
| the actor dies (segfault, out of memory, killed) | a fresh actor takes its place and its calls |
| the actor hangs past the deadline | killed, then as above |
| replacements exceed the budget | `FleetError` with the last errors: something is wrong with the job, not with a machine |
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

TRIES = 2  # of one call


class FleetError(RuntimeError):
    """The restart budget is spent."""


@dataclass(frozen=True)
class Failure:
    """A call that failed `TRIES` times; `error` is what the last try raised."""

    error: str


@dataclass
class _Call:
    key: Hashable
    arguments: tuple[Any, ...]
    tries: int = 0
    suspect: bool = False  # was lost with an actor: from then on it has an actor to itself


@dataclass(eq=False)
class _Member:
    actor: Any
    pending: dict[Any, _Call] = field(default_factory=dict)  # by object reference, oldest first
    since: float = 0.0  # when the oldest pending call became the oldest


class Fleet:
    """Runs keyed calls of one method on `size` actors.

    Args:
        create: makes one actor (a handle with the method). Called again for every replacement, and expected to return an
            actor in the same state.
        size: number of actors.
        deadline: seconds a call may take; count the start of a fresh actor in.
        restarts: replacements allowed in the fleet's lifetime.
        in_flight: calls queued per actor, so that an actor never waits for the driver.
    """

    def __init__(
        self, create: Callable[[], Any], size: int, deadline: float, restarts: int = 8, in_flight: int = 2
    ) -> None:
        if size < 1:
            raise ValueError("a fleet needs at least one actor")
        self._create = create
        self._deadline = deadline
        self._in_flight = in_flight
        self._budget = restarts
        self._errors: deque[str] = deque(maxlen=5)
        self.restarts = 0
        self._members = [_Member(create()) for _ in range(size)]

    def __len__(self) -> int:
        return len(self._members)

    def run(self, method: str, calls: Iterable[tuple[Hashable, tuple[Any, ...]]]) -> Iterator[tuple[Hashable, Any]]:
        """Yields `(key, result or Failure)` in completion order.

        `calls` is drawn from lazily, as actors have room: a generator that makes work is never far ahead.
        """
        waiting: deque[_Call] = deque()
        source = iter(calls)
        exhausted = False
        try:
            while True:
                for member in self._members:
                    while len(member.pending) < self._in_flight:
                        if not waiting and not exhausted:
                            try:
                                waiting.append(_Call(*next(source)))
                            except StopIteration:
                                exhausted = True
                        if not waiting:
                            break
                        if member.pending and any(c.suspect for c in (waiting[0], *member.pending.values())):
                            break
                        self._submit(member, method, waiting.popleft())
                busy = {reference: member for member in self._members for reference in member.pending}
                if not busy:
                    return
                done, _ = ray.wait(list(busy), num_returns=1, timeout=self._patience())
                for reference in done:
                    member = busy[reference]
                    call = member.pending.get(reference)
                    if call is None:  # its actor was replaced in this very round
                        continue
                    try:
                        result = ray.get(reference)
                    except RayTaskError as error:
                        self._settle(member, reference)
                        call.tries += 1
                        self._errors.append(f"{call.key}: {error.cause!r}")
                        if call.tries < TRIES:
                            waiting.append(call)
                            continue
                        result = Failure(str(error.cause))
                    except RayError as error:
                        # A dead actor's calls fail in any order; it was working on the oldest.
                        yield from self._replace(member, next(iter(member.pending)), error, waiting)
                        continue
                    else:
                        self._settle(member, reference)
                    yield call.key, result
                for member in self._members:
                    if member.pending and time.monotonic() - member.since > self._deadline:
                        oldest = next(iter(member.pending))
                        if ray.wait([oldest], timeout=0)[0]:  # it is we who were away: the consumer took its time
                            continue
                        late = TimeoutError(f"no answer within {self._deadline:.0f} s")
                        yield from self._replace(member, oldest, late, waiting)
        finally:
            for member in self._members:  # the caller stopped listening
                member.pending.clear()

    def _submit(self, member: _Member, method: str, call: _Call) -> None:
        if not member.pending:
            member.since = time.monotonic()
        member.pending[getattr(member.actor, method).remote(*call.arguments)] = call

    def _settle(self, member: _Member, reference: Any) -> None:
        del member.pending[reference]
        member.since = time.monotonic()

    def _patience(self) -> float:
        oldest = min(member.since for member in self._members if member.pending)
        return max(0.05, oldest + self._deadline - time.monotonic())

    def _replace(
        self, member: _Member, blamed: Any, error: Exception, waiting: deque[_Call]
    ) -> Iterator[tuple[Hashable, Failure]]:
        """Puts a fresh actor in the member's place and its calls back in line; yields the blamed call if it is given up."""
        culprit = member.pending.pop(blamed)
        others = list(member.pending.values())
        member.pending.clear()
        # The answer of the call before may have died with the actor, so blame can be wrong; nobody is given up for it, as
        # each is tried again alone.
        for call in (culprit, *others):
            call.suspect = True
        culprit.tries += 1
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        self._errors.append(f"{culprit.key}: {reason}")
        self.restarts += 1
        if self.restarts > self._budget:
            listed = "\n  ".join(self._errors)
            raise FleetError(f"{self.restarts} actors were lost, {self._budget} are allowed. Last errors:\n  {listed}")
        ray.kill(member.actor)
        member.actor = self._create()
        retried = [culprit, *others] if culprit.tries < TRIES else others
        waiting.extendleft(reversed(retried))
        if culprit.tries >= TRIES:
            yield culprit.key, Failure(reason)

    def close(self, farewell: str | None = None) -> None:
        """Ends all actors; those that answer are asked to tidy up by their method `farewell` before."""
        if farewell is not None:
            ray.wait([getattr(m.actor, farewell).remote() for m in self._members], num_returns=len(self), timeout=5.0)
        for member in self._members:
            ray.kill(member.actor)
        self._members.clear()
