"""The command line: `throng run`, `report`, `evaluate`, `whatif`, `compare`, `scenario check`, `scenario town`."""

from __future__ import annotations

import json
import logging
import re
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.exceptions import Abort, TyperException

from ..scenarios.errors import InputError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Learns what drivers want from what the roads looked like. Start with **throng run** (the built-in town, "
    "two to five minutes), then **throng run examples/bologna.yaml**.",
)
scenario_app = typer.Typer(no_args_is_help=True, help="Look at scenarios before learning from them.")
app.add_typer(scenario_app, name="scenario")
INTERRUPTED = 130
console = Console()
errors = Console(stderr=True)

ConfigPath = Annotated[Path | None, typer.Argument(help="YAML configuration; without one, the built-in town.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a setting, e.g. `--set search.population=64`. May be repeated."),
]
Profile = Annotated[
    str,
    typer.Option(help="Defaults below the case: `fast`, or `paper` (MASDiff as printed, configs/masdiff_paper.yaml)."),
]
RunPath = Annotated[Path, typer.Argument(help="The folder of a run, as `throng run` printed it.")]


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

    The same command again goes on where it stopped; no finished simulation is repeated. Files in the run's folder:
    `report.html`, `rewards.parquet` (every vehicle's reward model and route), `evaluation.json`, `ledger/` (every
    individual), TensorBoard events.
    """
    from .config import load_config
    from .experiment import run as run_experiment

    settings = load_config(config, overrides, profile)
    directory = out if out is not None else Path("runs") / settings.name
    store = run_experiment(settings, directory, resume, console)
    _finish(store.directory)


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
    solution = store.directory / "solution.safetensors"
    if not solution.exists():
        raise InputError(f"{run}: the run is not finished; go on with the same `throng run` command first")
    config = store.config()
    with Progress(console) as progress, workbench(config, store, progress) as bench:
        model = bench.case.problem.preference_model()
        progress.phase("floors and nulls")
        known = references.measure(bench, model, config.report.reference_seeds)
        evaluate_solution(bench, store, known, Solution.load(solution), seeds, progress)
    _finish(run)


@app.command()
def whatif(
    run: RunPath,
    ban_turn: Annotated[list[str] | None, typer.Option(metavar="FROM:TO", help="Close a turn to cars.")] = None,
    ban_left_onto: Annotated[
        list[str] | None, typer.Option(metavar="ROAD", help="Close all left turns onto a road.")
    ] = None,
    one_way: Annotated[
        list[str] | None,
        typer.Option(metavar="A,B,C", help="Close the opposite directions of these roads (same junctions, other way)."),
    ] = None,
    close: Annotated[list[str] | None, typer.Option(metavar="ROAD", help="Close a road to cars.")] = None,
    speed: Annotated[list[str] | None, typer.Option(metavar="ROAD=KM/H", help="Set a speed limit.")] = None,
    demand_scale: Annotated[
        float, typer.Option(help="Factor on the learnt vehicles: some are copied or left out at random.")
    ] = 1.0,
    net: Annotated[
        Path | None, typer.Option(help="An edited network (.net.xml); roads that it keeps have the same ids.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Folder below RUN/whatif [default: from the edits].")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Simulation seeds, before and after.")] = 4,
    ensemble: Annotated[int, typer.Option(min=1, max=10, help="Accepted explanations to simulate, best first.")] = 5,
) -> None:
    """Edit the network or the demand of a finished run, let its drivers learn their routes again, and compare.

    Roads are SUMO edge ids. Every option of an edit may be repeated, and edits combine. The same command again goes on
    where it stopped. Files in RUN/whatif/NAME: `report.html`, `whatif.json`, `roads.parquet`, `moved.parquet`.
    """
    from ..scenarios.edits import Edits
    from .whatif import what_if

    if name is not None and not re.fullmatch(r"[\w+-][\w.+-]*", name):
        raise InputError(f"--name {name}: expected letters, digits, '.', '_', '+' and '-'")
    edits = Edits.parse(
        ban_turn or (), ban_left_onto or (), one_way or (), close or (), speed or (), demand_scale, net
    )  # fmt: skip
    path = what_if(run, edits, name, seeds, ensemble, console)
    table = Table(title=", ".join(edits.words()))
    for heading in ("", "before", "after", "change", "90 % interval"):
        table.add_column(heading, justify="right" if heading else "left")
    effects = json.loads((path.parent / "whatif.json").read_text())["effects"]
    for label, row in effects.items():
        cells = ["–" if row[key] is None else f"{row[key]:.1f}" for key in ("before", "after", "change", "low", "high")]
        table.add_row(f"{label} ({row['unit']})", *cells[:3], f"{cells[3]} to {cells[4]}")
    console.print(table)
    console.print(f"report: {path}", highlight=False, soft_wrap=True)


@app.command()
def compare(
    config: ConfigPath = None,
    methods: Annotated[
        str, typer.Option(help="Methods, separated by commas; `--methods list` names them all.")
    ] = "masdiff,random,cma",
    seeds: Annotated[str, typer.Option(help="Search seeds, separated by commas.")] = "0,1,2",
    truths: Annotated[str, typer.Option(help="Hidden truths of a synthetic case, separated by commas.")] = "0",
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Folder [default: runs/NAME-compare].")] = None,
) -> None:
    """Run several methods on one case at equal budget: a table over seeds, and error against simulations used.

    Each is an ordinary run below the folder. The same command again does what is missing; finished runs are not repeated.
    Floors and nulls (prior draws, shortest and fastest path) are in every table.
    """
    from .compare import HEADINGS, cells, explained, summarise, write
    from .compare import compare as compare_methods
    from .config import load_config
    from .methods import METHODS
    from .methods import chosen as methods_named

    if methods == "list":
        for method in METHODS.values():
            console.print(f"{method.name:16} {method.about}", highlight=False)
        return
    chosen = methods_named(methods.split(","))
    name = load_config(config, overrides).name
    folder = out if out is not None else Path("runs") / f"{name}-compare"
    given = (_numbers("--truths", truths), _numbers("--seeds", seeds))
    scores = compare_methods(config, overrides or [], chosen, *given, folder, console)
    rows = summarise(scores)
    sets = "".join(f" --set {setting}" for setting in overrides or [])
    command = f"throng compare {config or ''} --methods {methods} --truths {truths} --seeds {seeds}{sets}"
    path = write(folder, " ".join(command.split()), scores, rows)
    table = Table(box=None, padding=(0, 1, 0, 0))
    for i, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*cells(row), style="bold" if row["method"] == "masdiff" else "")
    console.print(table)
    console.print(explained(scores), style="dim", highlight=False)
    console.print(f"table: {path}\ncurves: {path.with_name('curves.png')}", highlight=False, soft_wrap=True)


def _numbers(option: str, text: str) -> list[int]:
    """Distinct numbers separated by commas."""
    parts = text.split(",")
    if not all(part.strip().isdigit() for part in parts) or len({int(part) for part in parts}) < len(parts):
        raise InputError(f"{option} {text}: expected distinct whole numbers separated by commas, e.g. 0,1,2")
    return [int(part) for part in parts]


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


def _usage(error: Any) -> int:
    """Shows a usage error as Typer does; its class is not public."""
    error.show()
    return int(error.exit_code)


def main() -> None:
    """Entry point of the `throng` command: bad input gives its message alone and exit 2, Ctrl-C exit 130."""
    from ..workers.fleet import FleetError

    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        code = app(standalone_mode=False)
    except (InputError, FleetError, ConnectionError) as error:
        errors.print(f"error: {error}", style="bold red", highlight=False, markup=False, soft_wrap=True)
        code = 2 if isinstance(error, InputError) else 1
    except OSError as error:
        where = error.filename or "a temporary file"
        errors.print(
            f"error: {where}: {error.strerror or error}; nothing finished is lost: mend that and run again",
            markup=False,
        )
        code = 1
    except (KeyboardInterrupt, Abort):
        code = INTERRUPTED
    except TyperException as error:  # a mistyped option or command
        code = _usage(error)
    except SystemError as error:  # what compiled code makes of a Ctrl-C that it meets
        if not isinstance(error.__cause__, KeyboardInterrupt):
            raise
        code = INTERRUPTED
    if code == INTERRUPTED:
        errors.print("interrupted; nothing finished is lost: the same command goes on from here", markup=False)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
