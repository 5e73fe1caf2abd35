"""Progress of a run: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

LINE_EVERY = 10.0  # seconds between plain lines
PATIENCE = 10.0  # seconds that a worker may wait for resources before it is mentioned


class Progress:
    """Generation, best error, noise floor, simulations per second and time left.

    `share` of the work that is done is what the search says it is: its budget used.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = console.is_terminal
        self._began = time.monotonic()
        self._last_line = 0.0
        self._simulations = 0
        self._phase_began = self._began
        self._phase_simulations = 0
        self._phase = ""
        self._facts = ""
        self._share = 0.0
        self._share_began = 0.0
        self._waiting: dict[str, tuple[int, float]] = {}
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Progress:
        if self._live:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TimeElapsedColumn(),
                TextColumn("{task.fields[facts]}"),
            )
            self._bar = Bar(*columns, console=self._console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=1.0, facts="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def phase(self, text: str, share: float = 0.0) -> None:
        """A new part of the work begins; `share` is how much of it an earlier session did."""
        self._phase = text
        self._facts = ""
        self._phase_began = time.monotonic()
        self._phase_simulations = self._simulations
        self._share = self._share_began = share
        self._last_line = 0.0
        self._show()

    def simulated(self) -> None:
        self._simulations += 1
        self._show()

    def advance(self, share: float, facts: str) -> None:
        """`share` in [0, 1] of the phase is done; `facts` are the figures to show."""
        self._share = share
        self._facts = facts
        self._show()

    def waits(self, name: str, count: int, seconds: float) -> None:
        """So many workers of a kind have no resources, the first of them for so long."""
        self._waiting[name] = (count, seconds)
        self._show()

    def note(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, highlight=False)

    def _show(self) -> None:
        now = time.monotonic()
        elapsed = now - self._phase_began
        rate = (self._simulations - self._phase_simulations) / elapsed if elapsed > 0.5 else 0.0
        parts = [self._facts] if self._facts else []
        if rate:
            parts.append(f"{rate:.1f} sims/s")
        if self._share > self._share_began and elapsed > 2.0:
            left = elapsed * (1.0 - self._share) / (self._share - self._share_began)
            parts.append(f"{_clock(left)} left")
        for name, (count, seconds) in self._waiting.items():
            if count and seconds >= PATIENCE:
                kind = f"a {name} waits" if count == 1 else f"{count} {name}s wait"
                parts.append(f"{kind} for resources ({_clock(seconds)})")
        text = " · ".join(parts)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=self._phase, completed=self._share, facts=text)
        elif not self._live and now - self._last_line >= LINE_EVERY:
            self._last_line = now
            percent = f"{100 * self._share:3.0f} % · " if self._share else ""
            self._console.print(
                f"[{_clock(now - self._began)}] {self._phase} · {percent}{text}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
