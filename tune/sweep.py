"""A sweep: whole experiments as trials of Ray Tune, begun, stopped early, resumed and recorded.

    sweep.yaml               the sweep, as it was begun; another one is refused
    trials/003-1a2b3c4d/     point.json (what was chosen), run/ (an ordinary run), log.txt, outcome.json (when it has ended)
    NAME.md, .json, .png     the table, all figures, the parallel coordinates
    best.yaml                the best trial's configuration, for `throng run`

The files are the sweep's whole state: the same command tells the way of choosing what is known, goes on with the trials that
had begun, and begins the rest. What Tune itself keeps (pickles, below `tune/`) is never read.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

# Read by Tune when it is imported. No results and no lines beside ours; Ctrl-C is ours too: a sweep goes on by its files.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")

import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from rich.console import Console

from ..cluster.session import cpus, session
from ..platform.finetuning import prepare
from ..platform.finetuning_config import FineTuningConfig
from ..platform.progress import Progress
from ..platform.store import RunStore, write_atomic
from ..scenarios.errors import InputError
from ..workers.placement import cpus_for
from .choice import Choice, choice
from .experiments import budget, perform
from .spec import Point, Spec

FIRST_LOOK = 1 / 8  # share of the budget after which a trial may be stopped
KEPT = 3  # of so many trials one may go on from look to look (ASHA's reduction factor)
AGAIN = 3  # lost nodes or crashes that one trial survives
TRIES = 50  # to choose a point that is not known
DRIVER = 0.5  # CPUs of a trial whose simulations run in actors of their own
State = Literal["begun", "finished", "stopped", "failed"]


@dataclass(eq=False)
class Trial:
    """A point, and what it came to."""

    number: int
    point: Point
    state: State = "begun"
    error: float = math.inf  # what it is judged by; of one that was stopped: estimated when it was, if it could be
    sd: float | None = None
    simulations: float = 0.0
    failure: str = ""
    estimate: float = math.inf  # what it could be stopped by, when it was last heard of

    @property
    def name(self) -> str:
        return f"{self.number:03d}-{zlib.crc32(json.dumps(self.point, sort_keys=True).encode()):08x}"


@dataclass(eq=False)
class Plan:
    """All trials of a sweep, and its files."""

    spec: Spec
    folder: Path
    trials: list[Trial] = field(default_factory=list)
    under_way: dict[str, Trial] = field(default_factory=dict)  # by Tune's id

    @classmethod
    def open(cls, spec: Spec, folder: Path) -> Plan:
        """A new sweep, or the same one again.

        Raises:
            InputError: the folder holds another sweep, or other files.
        """
        path = folder / "sweep.json"
        # Whether it searches longer, or elsewhere, does not make it another sweep.
        given = spec.model_dump(mode="json", by_alias=True, exclude={"samples", "concurrent"})
        if path.exists():
            before = json.loads(path.read_text())
            changed = [key for key in given if given[key] != before.get(key)]
            if changed:
                raise InputError(f"{folder}: holds another sweep: {', '.join(changed)} differ; choose another --out")
        elif folder.is_dir() and any(folder.iterdir()):
            raise InputError(f"{folder}: not empty and not a sweep of Throng; choose another --out")
        (folder / "trials").mkdir(parents=True, exist_ok=True)
        RunStore(folder).write_json("sweep.json", given)
        plan = cls(spec, folder)
        for entry in sorted((folder / "trials").glob("*/point.json")):
            outcome = entry.with_name("outcome.json")
            known = json.loads((outcome if outcome.exists() else entry).read_text())
            plan.trials.append(Trial(**known))
        return plan

    def of(self, *states: State) -> list[Trial]:
        return [trial for trial in self.trials if trial.state in states]

    def directory(self, trial: Trial) -> Path:
        return self.folder / "trials" / trial.name

    def record(self, trial: Trial) -> None:
        """Writes down a trial: that it has begun, or what it came to."""
        directory = self.directory(trial)
        directory.mkdir(exist_ok=True)
        if trial.state == "begun":
            known: dict[str, Any] = {"number": trial.number, "point": trial.point}
            RunStore(directory).write_json("point.json", known)
        else:
            RunStore(directory).write_json("outcome.json", asdict(trial))


class _Chosen(Searcher):
    """Tune's view of a plan: trials that had begun, then new ones."""

    def __init__(self, plan: Plan, progress: Progress) -> None:
        super().__init__(metric="estimate", mode="min")
        self._plan = plan
        self._progress = progress
        ended = plan.of("finished", "stopped", "failed")
        self._waiting = plan.of("begun")
        self._choice: Choice = choice(plan.spec, len(ended))
        for trial in ended:
            self._choice.tell(trial.point, trial.error)

    def suggest(self, trial_id: str) -> Any:
        plan = self._plan
        while (trial := self._waiting.pop(0) if self._waiting else self._new()) is not None:
            plan.record(trial)
            try:
                settings = self._settings(trial)
            except InputError as error:  # each value is right, but they do not go together
                trial.state, trial.failure = "failed", str(error)
                plan.record(trial)
                self._choice.tell(trial.point, trial.error)
                continue
            plan.under_way[trial_id] = trial
            return {"folder": str(plan.directory(trial).resolve()), "settings": settings}
        return Searcher.FINISHED

    def _settings(self, trial: Trial) -> dict[str, Any]:
        """All of them: where Tune has the trial run, relative paths would mean something else."""
        spec = self._plan.spec
        # Trials fill the machine: each works in its own process, unless the sweep says otherwise.
        alone = () if spec.config(trial.point).workers.rollouts else ("workers.rollouts=0",)
        return spec.config(trial.point, alone).model_dump(mode="json")

    def _new(self) -> Trial | None:
        plan = self._plan
        number = len(plan.trials)
        if number >= plan.spec.samples:
            return None
        known = {json.dumps(trial.point, sort_keys=True): trial for trial in plan.trials}
        for _ in range(TRIES):
            point = self._choice.ask(number)
            if point is None:
                return None
            same = known.get(json.dumps(point, sort_keys=True))
            if same is None:
                plan.trials.append(Trial(number, point))
                return plan.trials[-1]
            self._choice.tell(point, same.error)  # it would end the same way again
        return None

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._hear(self._plan.under_way[trial_id], result)
        self._show()

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial = self._plan.under_way.pop(trial_id)
        if result:
            self._hear(trial, result)
        if error:
            trial.failure = (
                f"it ended {AGAIN + 1} times without a result; see log.txt and error.txt of Tune below tune/"
            )
        if error or trial.failure:
            trial.state, trial.error = "failed", math.inf
        elif trial.state == "begun":
            trial.state = "stopped"
        self._plan.record(trial)
        self._choice.tell(trial.point, trial.error)
        self._show()

    @staticmethod
    def _hear(trial: Trial, result: dict[str, Any]) -> None:
        trial.error = result.get("error", trial.error)
        trial.estimate = result.get("estimate", trial.estimate)
        trial.simulations = result.get("simulations", trial.simulations)
        trial.failure = result.get("failure", "")
        if result.get("finished"):
            trial.state, trial.sd = "finished", result.get("sd")

    def _show(self) -> None:
        plan = self._plan
        ended = plan.of("finished", "stopped", "failed")
        best = min((trial.error for trial in plan.of("finished")), default=math.nan)
        facts = [f"{len(ended)} of {plan.spec.samples} trials", f"{len(plan.under_way)} under way"]
        for state in ("stopped", "failed"):
            if count := len(plan.of(state)):
                facts.append(f"{count} {state}")
        facts.append(f"best {best:.3f}" if math.isfinite(best) else "best –")
        self._progress.advance(len(ended) / plan.spec.samples, " · ".join(facts))

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles the searches it is given."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the plan's files are its state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""


def sweep(spec: Spec, folder: Path, address: str, console: Console) -> Plan:
    """Runs the sweep to its end, or on from where it stopped.

    Args:
        address: of Ray, as of `workers.address`.

    Raises:
        InputError: the folder holds something else, or every trial failed.
    """
    plan = Plan.open(spec, folder)
    corners = [spec.config(point) for point in spec.corners()]
    workers = max(config.workers.rollouts or 0 for config in corners)
    # A trial's own process mostly waits for its workers.
    each = 1.0
    if workers:
        each = DRIVER + max(cpus_for(c.workers.rollouts, c.workers.learners) for c in corners if c.workers.rollouts)
    local = math.ceil(each * (spec.concurrent or max(1, cpus() // max(1, workers))))
    with Progress(console) as progress:
        for config in corners:
            if isinstance(config, FineTuningConfig):
                prepare(config, progress)
    with session(address, local) as there, Progress(console) as progress:
        concurrent = spec.concurrent or max(1, int(there() // each))
        progress.phase("sweeping")
        searcher = _Chosen(plan, progress)
        resources = {"CPU": 1.0 if workers == 0 else DRIVER}
        tuner = tune.Tuner(
            tune.with_resources(_trial, resources),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=_scheduler(spec, max(budget(config) for config in corners)),
                num_samples=-1,
                max_concurrent_trials=concurrent,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=f"{time.strftime('%Y%m%d-%H%M%S')}",
                storage_path=str((folder / "tune").resolve()),
                failure_config=tune.FailureConfig(max_failures=AGAIN),
                verbose=0,
            ),
        )
        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        tuner.fit()
    if not plan.of("finished"):
        first = next((trial for trial in plan.of("failed")), None)
        why = f"the first with: {first.failure}" if first else "none was begun"
        raise InputError(f"{folder}: no trial has finished, {why}")
    return plan


def _scheduler(spec: Spec, budget: float) -> TrialScheduler:
    if not spec.stop_early:
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    # Past the budget there is nothing to stop: the longest time is never reached.
    return ASHAScheduler(
        time_attr="simulations", metric="estimate", mode="min", grace_period=max(1, round(FIRST_LOOK * budget)),
        max_t=math.ceil(4 * budget), reduction_factor=KEPT,
    )  # fmt: skip


def _trial(given: dict[str, Any]) -> None:
    """One experiment, in a process of its own; the same folder goes on where it stopped."""
    torch.set_num_threads(1)
    folder = Path(given["folder"])
    with (folder / "log.txt").open("a") as log:
        perform(given["settings"], folder / "run", Console(file=log, width=120), tune.report)


def save_best(plan: Plan) -> Path:
    """Writes the best finished trial's configuration, as `throng run` takes it."""
    best = min(plan.of("finished"), key=lambda trial: (trial.error, trial.number))
    config = plan.spec.config(best.point, (f"name={plan.spec.name}-best",))
    path = plan.folder / "best.yaml"
    write_atomic(path, lambda temporary: temporary.write_text(config.to_yaml()))
    return path
