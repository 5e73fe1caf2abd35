"""The command line: `throng run`, `report`, `evaluate`, `status`, `scenario …`; the rest is in the other files cli_*."""

from __future__ import annotations

import logging
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from typer.exceptions import Abort, TyperException

from ..scenarios.errors import InputError
from . import cli_jobs, cli_scenes, cli_studies, cli_worldmodel
from .cli_options import ConfigPath, Overrides, Profile, RunPath, console

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Learns what drivers want from what the roads looked like. Start with **throng run** (the built-in town, "
    "two to five minutes), then **throng run examples/bologna.yaml**.",
)
scenario_app = typer.Typer(no_args_is_help=True, help="Look at scenarios before learning from them.")
app.add_typer(scenario_app, name="scenario")
app.add_typer(cli_jobs.job_app, name="job")
app.add_typer(cli_scenes.scenes_app, name="scenes")
app.add_typer(cli_worldmodel.worldmodel_app, name="worldmodel")
for command in (cli_studies.whatif, cli_studies.compare, cli_studies.validate, cli_jobs.submit):
    app.command()(command)
INTERRUPTED = 130
errors = Console(stderr=True)


@app.command()
def run(
    config: ConfigPath = None,
    overrides: Overrides = None,
    profile: Profile = "fast",
    out: Annotated[Path | None, typer.Option(help="Folder of the run [default: runs/NAME].")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Demand an existing run; its budget and generations may be raised.")
    ] = False,
) -> None:
    """Learn reward models and routing policies that reproduce an observed traffic series.

    A configuration with `system:` (mappo, masac, trafficgamer, cce-masac, rllib-ppo) fine-tunes drivers of a recorded
    scene instead. The same command again goes on where it stopped; no finished simulation is repeated. Files in the
    run's folder: `report.html`, `rewards.parquet` (every vehicle's reward model and route), `evaluation.json`,
    `ledger/` (every individual), TensorBoard events.
    """
    from .config import load_config, settings_of
    from .experiment import run as run_experiment

    if "system" in settings_of(config, overrides, {}):
        _fine_tune(config, overrides, out, resume)
        return
    settings = load_config(config, overrides, profile)
    directory = out if out is not None else Path("runs") / settings.name
    store = run_experiment(settings, directory, resume, console)
    _finish(store.directory)


def _fine_tune(config: Path | None, overrides: list[str] | None, out: Path | None, resume: bool) -> None:
    from .config import settings_of, validated
    from .finetuning import run as run_finetuning
    from .finetuning_config import FineTuningConfig
    from .finetuning_report import summary

    settings = validated(FineTuningConfig, settings_of(config, overrides, {}), config)
    directory = out if out is not None else Path("runs") / settings.name
    store = run_finetuning(settings, directory, resume, console)
    for line in summary(store):
        console.print(line, highlight=False, soft_wrap=True)


@app.command()
def report(run: RunPath) -> None:
    """Write the report of a finished run again (report.html, figures/*.png, rewards.parquet)."""
    _finish(run)


@app.command()
def evaluate(
    run: RunPath,
    seeds: Annotated[int, typer.Option(min=2, help="Fresh simulation seeds.")] = 8,
) -> None:
    """Re-simulate the best policies on fresh seeds: error with its spread, against floors and nulls."""
    from . import references
    from .experiment import Solution
    from .experiment import evaluate as evaluate_solution
    from .progress import Progress
    from .store import RunStore
    from .workbench import workbench

    store = RunStore.open(run)
    config = store.config()
    solution = store.directory / "solution.safetensors"
    if not solution.exists():
        raise InputError(f"{run}: the run is not finished; go on with the same `throng run` command first")
    with Progress(console) as progress, workbench(config, store, progress) as bench:
        model = bench.case.problem.preference_model()
        progress.phase("floors and nulls")
        known = references.measure(bench, model, config.report.reference_seeds)
        evaluate_solution(bench, store, known, Solution.load(solution), seeds, progress)
    _finish(run)


@app.command()
def status(
    folder: Annotated[Path, typer.Argument(help="A run, or a folder with runs anywhere below it.")] = Path("runs"),
) -> None:
    """Say how far runs have come: from another shell, while they work or after they stopped."""
    from .status import EXPLAINED, HEADINGS, cells, runs_below
    from .status import status as status_of

    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in ("run", "state") else "right", overflow="fold")
    for one in runs_below(folder):
        table.add_row(*cells(status_of(one), folder))
    console.print(table)
    console.print(EXPLAINED, style="dim", highlight=False)


@app.command()
def plan(
    config: ConfigPath = None,
    cluster: Annotated[
        Path | None, typer.Option(help="Launch file of a cluster (cluster/launch/) [default: this machine].")
    ] = None,
    overrides: Overrides = None,
    profile: Profile = "fast",
) -> None:
    """Say what a run would need: simulations, core-hours, memory, nodes over time.

    Rates are measured here on one candidate: seconds for a town, minutes for a city.
    """
    from .config import load_config
    from .plan import HEADINGS
    from .plan import plan as plan_run
    from .progress import Progress

    with Progress(console) as progress:
        rows, sums = plan_run(load_config(config, overrides, profile), cluster, progress)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for i, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for label, value in sums:
        console.print(f"{label}: {value}", highlight=False, soft_wrap=True)


@scenario_app.command("check")
def check(config: ConfigPath = None, overrides: Overrides = None, profile: Profile = "fast") -> None:
    """Load a scenario, simulate it, and say whether it can be learnt from."""
    from .check import check_scenario
    from .config import load_config
    from .progress import Progress

    with Progress(console) as progress:
        rows, verdict, learnable = check_scenario(load_config(config, overrides, profile), progress)
    table = Table(show_header=False, box=None, padding=(0, 2))
    for label, value in rows:
        table.add_row(label, value)
    console.print(table)
    console.print(verdict, highlight=False)
    if not learnable:
        raise typer.Exit(1)


@scenario_app.command("town")
def town(
    out: Annotated[Path, typer.Option(help="Folder for the files.")],
    vehicles: Annotated[
        int, typer.Option(min=1, help="Trips; 1557, 2758 and 4423 drive 30, 60 and 90 minutes.")
    ] = 1557,
    minutes: Annotated[int | None, typer.Option(min=1, help="Length of the simulation.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the demand.")] = 0,
) -> None:
    """Write the built-in town as ordinary SUMO files (net, trips, sumocfg)."""
    from ..scenarios.town import write_town

    files = write_town(out, vehicles, minutes, seed)
    console.print(f"{files.net}\n{files.trips}\n{files.config}", highlight=False, soft_wrap=True)


def _finish(directory: Path) -> None:
    """Writes report and exports, and prints the summary table."""
    from .case import load_case
    from .experiment import Solution
    from .report import write_report
    from .store import RunStore
    from .summary import export_rewards, report_data

    store = RunStore.open(directory)
    with tempfile.TemporaryDirectory(prefix="throng-") as scratch:
        case = load_case(store.config(), Path(scratch))
        data = report_data(store, case)
        solution = Solution.load(store.directory / "solution.safetensors")
        export_rewards(store, case, case.problem.preference_model(), solution)
        path = write_report(data, store.directory)
    table = Table(title=data.title)
    evaluation = store.read_json("evaluation.json")
    assert evaluation is not None
    headings = {
        "method": "method", "rmse": f"RMSE ({evaluation['unit']})", "rmse_sd": "s.d.", "mae": "MAE",
        "road_rmse": "RMSE of road means", "top50_corr": "corr. top 50", "gap": "gap (0 floor, 1 prior)",
    }  # fmt: skip
    for heading in headings.values():
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for row in evaluation["rows"]:
        cells = [row["method"], *(f"{row[key]:.3f}" if row.get(key) is not None else "–" for key in list(headings)[1:])]
        table.add_row(*cells, style="bold" if row["method"] == "throng" else "")
    console.print(table)
    for label, value in data.summary:
        console.print(f"{label}: {value}", highlight=False)
    console.print(f"report: {path}", highlight=False, soft_wrap=True)


class _Interruption:
    """Ctrl-C: a KeyboardInterrupt, as ever; and that it came is remembered.

    Compiled code that meets the KeyboardInterrupt (Numba's dispatcher, callbacks of C libraries) may turn it into another
    exception, or drop it and fail at what is missing then.
    """

    def __init__(self) -> None:
        self.came = False
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a script had it ignored
            signal.signal(signal.SIGINT, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        signal.default_int_handler(number, frame)


def main() -> None:
    """Entry point of the `throng` command: bad input gives its message alone and exit 2, Ctrl-C exit 130."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    interruption = _Interruption()
    try:
        code = app(standalone_mode=False)
    except (KeyboardInterrupt, Abort):
        code = INTERRUPTED
    except Exception as error:
        code = INTERRUPTED if interruption.came else _explained(error)
    if code == INTERRUPTED:
        errors.print("interrupted; nothing finished is lost: the same command goes on from here", markup=False)
    sys.exit(code if isinstance(code, int) else 0)


def _explained(error: Exception) -> int:
    """Says what is wrong and returns the exit status; a defect is raised again."""
    from ..workers.fleet import FleetError

    if isinstance(error, TyperException):  # a mistyped option or command
        error.show()  # type: ignore[attr-defined]  # of its subclasses, which are not public
        return error.exit_code
    if isinstance(error, InputError | FleetError | ConnectionError):
        errors.print(f"error: {error}", style="bold red", highlight=False, markup=False, soft_wrap=True)
        return 2 if isinstance(error, InputError) else 1
    if isinstance(error, OSError):
        where = error.filename or "a temporary file"
        errors.print(
            f"error: {where}: {error.strerror or error}; nothing finished is lost: mend that and run again",
            markup=False,
        )
        return 1
    raise error


if __name__ == "__main__":
    main()
