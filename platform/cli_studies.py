"""Commands that ask more of the case than one search: `throng whatif`, `compare`, `validate`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..scenarios.errors import InputError
from .cli_options import (
    BanLeftOnto,
    BanTurn,
    Close,
    ConfigPath,
    DemandScale,
    Net,
    OneWay,
    Overrides,
    RunPath,
    Seeds,
    Speed,
    Truths,
    Vary,
    console,
)


def whatif(
    run: RunPath,
    ban_turn: BanTurn = None,
    ban_left_onto: BanLeftOnto = None,
    one_way: OneWay = None,
    close: Close = None,
    speed: Speed = None,
    demand_scale: DemandScale = 1.0,
    net: Net = None,
    name: Annotated[str | None, typer.Option(help="Folder below RUN/whatif [default: from the edits].")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Simulation seeds, before and after.")] = 4,
    ensemble: Annotated[int, typer.Option(min=1, max=10, help="Accepted explanations to simulate, best first.")] = 5,
) -> None:
    """Edit the network or the demand of a finished run, let its drivers learn their routes again, and compare.

    Roads are SUMO edge ids. Every option of an edit may be repeated, and edits combine. The same command again goes on
    where it stopped. Files in RUN/whatif/NAME: `report.html`, `whatif.json`, `roads.parquet`, `moved.parquet`.
    """
    from ..scenarios.edits import Edits
    from .store import RunStore
    from .whatif import what_if

    _require_file_name(name)
    RunStore.open(run).config()  # refuses a fine-tuning
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


def compare(
    config: ConfigPath = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Methods, separated by commas; `--methods list` names them all [default: masdiff,random,cma; of a "
            "fine-tuning its own system and, without --vary, its baseline]."
        ),
    ] = None,
    seeds: Seeds = "0,1,2",
    truths: Annotated[
        str | None, typer.Option(help="Hidden truths of a synthetic case, separated by commas [default: 0].")
    ] = None,
    vary: Vary = None,
    overrides: Overrides = None,
    name: Annotated[str, typer.Option(help="Of the table and the picture in the folder.")] = "compare",
    out: Annotated[Path | None, typer.Option(help="Folder [default: runs/CASE-compare].")] = None,
) -> None:
    """Run several methods on one case at equal budget: a table over seeds, and error against simulations used.

    Each is an ordinary run below the folder. The same command again does what is missing; finished runs are not repeated.
    Floors and nulls (prior draws, shortest and fastest path) are in every table. A case with `system:` compares fine-tuners
    (CCE-gaps, spacings, speeds, likeness to the record), or what settings do: `--vary terms.distance_limit=3,7,11
    --vary algorithm.confidence=0,0.5,0.9`.
    """
    from .compare import HEADINGS, cells, explained, summarise, write
    from .compare import compare as compare_methods
    from .config import load_config, settings_of
    from .finetuning_compare import ABOUT
    from .methods import METHODS
    from .methods import chosen as methods_named

    if methods == "list":
        for known, about in ({method.name: method.about for method in METHODS.values()} | ABOUT).items():
            console.print(f"{known:16} {about}", highlight=False)
        return
    _require_file_name(name)
    if "system" in settings_of(config, overrides, {}):
        if truths is not None:
            raise InputError("--truths: a fine-tuning has no hidden truth; use --seeds")
        _compare_fine_tuners(config, methods, _numbers("--seeds", seeds), vary or [], overrides or [], name, out)
        return
    if vary:
        raise InputError("--vary: the case is no fine-tuning (it has no `system:`); use --set, or `throng sweep`")
    methods, truths = methods or "masdiff,random,cma", truths or "0"
    chosen = methods_named(methods.split(","))
    folder = out if out is not None else Path("runs") / f"{load_config(config, overrides).name}-compare"
    given = (_numbers("--truths", truths), _numbers("--seeds", seeds))
    scores = compare_methods(config, overrides or [], chosen, *given, folder, console)
    rows = summarise(scores)
    sets = "".join(f" --set {setting}" for setting in overrides or [])
    command = f"throng compare {config or ''} --methods {methods} --truths {truths} --seeds {seeds}{sets}"
    path = write(folder, name, " ".join(command.split()), scores, rows)
    table = Table(box=None, padding=(0, 1, 0, 0))
    for i, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*cells(row), style="bold" if row["method"] == "masdiff" else "")
    console.print(table)
    console.print(explained(scores), style="dim", highlight=False)
    console.print(f"table: {path}\ncurves: {path.with_suffix('.png')}", highlight=False, soft_wrap=True)


def _compare_fine_tuners(
    config: Path | None, methods: str | None, seeds: list[int], vary: list[str], overrides: list[str], name: str,
    out: Path | None,
) -> None:  # fmt: skip
    from .config import settings_of
    from .finetuning_compare import EXPLAINED, axes_of, cells, chosen, headings, planned, told, write
    from .finetuning_compare import compare as compare_fine_tuners
    from .finetuning_scores import summarise

    data = settings_of(config, overrides, {})
    axes, own = axes_of(vary), str(data["system"])
    runs = planned(config, overrides, [own] if vary and methods is None else chosen(methods, own), axes, seeds)
    folder = out if out is not None else Path("runs") / f"{runs[0].config.name}-compare"
    scores = compare_fine_tuners(runs, folder, console)
    options = [f"--methods {methods}"] if methods is not None else []
    options += [f"--vary {one}" for one in vary]
    options += [f"--seeds {','.join(map(str, seeds))}", *(f"--set {setting}" for setting in overrides)]
    path = write(folder, name, " ".join(["throng compare", str(config or ""), *options]), scores, axes)
    rows = summarise(scores)
    for number, titles in enumerate(headings(axes)):
        table = Table(box=None, padding=(0, 1, 0, 0))
        for i, heading in enumerate(titles):
            table.add_column(heading, justify="right" if i else "left", overflow="fold")
        for row in rows:
            table.add_row(*cells(row, axes)[number])
        console.print(table)
    for line in told(scores, axes):
        console.print(line, highlight=False)
    console.print(EXPLAINED, style="dim", highlight=False)
    console.print(f"table: {path}\npictures: {path.with_suffix('.png')}", highlight=False, soft_wrap=True)


def validate(
    config: ConfigPath = None,
    ban_turn: BanTurn = None,
    ban_left_onto: BanLeftOnto = None,
    one_way: OneWay = None,
    close: Close = None,
    speed: Speed = None,
    demand_scale: DemandScale = 1.0,
    net: Net = None,
    seeds: Seeds = "0,1",
    truths: Truths = "0,1,2",
    simulations: Annotated[int, typer.Option(min=2, help="Simulation seeds, before and after.")] = 4,
    overrides: Overrides = None,
    name: Annotated[str | None, typer.Option(help="Of the table and the picture [default: from the edits].")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder [default: runs/CASE-validate].")] = None,
) -> None:
    """Check on hidden drivers how well the effects of an edit would be predicted on this network.

    For every truth and search seed, drivers are learnt from the traffic before the edit alone, with Throng and with the
    literal reward table (two searches each; those below OUT that are finished are not repeated). Then the edit is made, and
    what is predicted is compared with what the hidden drivers do, beside drivers who have learnt nothing.
    """
    from ..scenarios.edits import Edits
    from .config import load_config
    from .validation import HEADINGS, cells, explained, summarise, write
    from .validation import validate as validate_edits

    _require_file_name(name)
    edits = Edits.parse(
        ban_turn or (), ban_left_onto or (), one_way or (), close or (), speed or (), demand_scale, net
    )  # fmt: skip
    folder = out if out is not None else Path("runs") / f"{load_config(config, overrides).name}-validate"
    given = (_numbers("--truths", truths), _numbers("--seeds", seeds))
    result = validate_edits(config, overrides or [], edits, *given, simulations, folder, console)
    rows = summarise(result.scores)
    sets = "".join(f" --set {setting}" for setting in overrides or [])
    command = f"throng validate {config or ''} {edits.options()} --truths {truths} --seeds {seeds}{sets}"
    path = write(folder, name or edits.name(), " ".join(command.split()), result, rows, simulations)
    table = Table(box=None, padding=(0, 1, 0, 0))
    for i, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*cells(row, spread=False), style="bold" if row.predictor == "throng" else "")
    console.print(table)
    console.print(explained(result, simulations), style="dim", highlight=False)
    console.print(f"table: {path}\npicture: {path.with_suffix('.png')}", highlight=False, soft_wrap=True)


def _require_file_name(name: str | None) -> None:
    if name is not None and not re.fullmatch(r"[\w+-][\w.+-]*", name):
        raise InputError(f"--name {name}: expected letters, digits, '.', '_', '+' and '-'")


def _numbers(option: str, text: str) -> list[int]:
    """Distinct numbers separated by commas."""
    parts = text.split(",")
    if not all(part.strip().isdigit() for part in parts) or len({int(part) for part in parts}) < len(parts):
        raise InputError(f"{option} {text}: expected distinct whole numbers separated by commas, e.g. 0,1,2")
    return [int(part) for part in parts]
