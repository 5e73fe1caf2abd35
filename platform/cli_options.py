"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console()

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

BanTurn = Annotated[list[str] | None, typer.Option(metavar="FROM:TO", help="Close a turn to cars.")]
BanLeftOnto = Annotated[list[str] | None, typer.Option(metavar="ROAD", help="Close all left turns onto a road.")]
OneWay = Annotated[
    list[str] | None,
    typer.Option(metavar="A,B,C", help="Close the opposite directions of these roads (same junctions, other way)."),
]
Close = Annotated[list[str] | None, typer.Option(metavar="ROAD", help="Close a road to cars.")]
Speed = Annotated[list[str] | None, typer.Option(metavar="ROAD=KM/H", help="Set a speed limit.")]
DemandScale = Annotated[
    float, typer.Option(help="Factor on the learnt vehicles: some are copied or left out at random.")
]
Net = Annotated[Path | None, typer.Option(help="An edited network (.net.xml); roads that it keeps have the same ids.")]

Seeds = Annotated[str, typer.Option(help="Search seeds, separated by commas.")]
Truths = Annotated[str, typer.Option(help="Hidden truths of a synthetic case, separated by commas.")]
Vary = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=A,B,…", help="Of a fine-tuning: a setting and its values; twice, for a grid of two."),
]
