"""`throng scenes …`: look at driving scenes, make them with SUMO, and write them in other formats."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from ..scenarios.errors import InputError
from .cli_options import Overrides, console

scenes_app = typer.Typer(
    no_args_is_help=True,
    help="Driving scenes: Argoverse 2 (motion forecasting, sensor logs), Waymo Open Motion (TFRecord, JSON, npz), "
    "INTERACTION, and made with SUMO.",
)
Files = Annotated[list[Path], typer.Argument(help="Files, or folders with scenes anywhere below.")]


@scenes_app.command("check")
def check(files: Files) -> None:
    """Read scenes and say what is in them, and what was repaired. A file that cannot be read does not end the list."""
    from ..scenarios.driving.files import read_scenes, scene_files
    from ..scenarios.driving.recording import LANES
    from ..scenarios.driving.scene import Kind, Line

    table = Table(box=None, pad_edge=False)
    table.add_column("scene", overflow="fold", min_width=12)
    for heading in ("format", "veh", "ped", "cyc", "other", "steps", "s", "lanes", "links", "edges", "lights"):
        table.add_column(heading, justify="left" if heading == "format" else "right", no_wrap=True)
    notes: list[tuple[str, str]] = []
    failed: list[str] = []
    for path in scene_files(files):
        try:
            for scene in read_scenes(path):
                kinds = Counter(scene.kind.tolist())
                lanes = len(scene.of_kind(*LANES))
                table.add_row(
                    Text(scene.name), scene.source, *(str(kinds[kind]) for kind in Kind),
                    str(scene.steps), f"{scene.step:g}", str(lanes), str(len(scene.lane_graph)),
                    str(len(scene.of_kind(Line.ROAD_EDGE))), str(len(scene.lights)),
                )  # fmt: skip
                notes += [(scene.name, note) for note in scene.notes]
        except InputError as error:
            failed.append(str(error))
    console.print(table)
    for name, note in notes:
        console.print(f"{name}: {note}", highlight=False, markup=False, soft_wrap=True)
    for message in failed:
        console.print(f"cannot be read: {message}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"{table.row_count} scenes, {len(failed)} files could not be read", highlight=False)
    if failed:
        raise typer.Exit(1)


@scenes_app.command("show")
def show(
    file: Annotated[Path, typer.Argument(help="A file with a scene.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("scenes"),
    scene: Annotated[int, typer.Option(min=0, help="Which scene of the file, if it has several.")] = 0,
    step: Annotated[int | None, typer.Option(min=0, help="Step of the PNG [default: the last of the history].")] = None,
) -> None:
    """Draw a scene: NAME.png, one moment, and NAME.html, a looping animation that opens offline."""
    from ..scenarios.driving.draw import animation, picture
    from ..scenarios.driving.files import read_scenes, scene_files

    path = scene_files([file])[0]
    found = next((one for i, one in enumerate(read_scenes(path)) if i == scene), None)
    if found is None:
        raise InputError(f"{path}: has no scene {scene}; they are counted from 0")
    if step is not None and step >= found.steps:
        raise InputError(f"{path}: --step {step}, but {found.name} has {found.steps} steps, counted from 0")
    out.mkdir(parents=True, exist_ok=True)
    picture(found, step).savefig(out / f"{found.stem}.png")
    (out / f"{found.stem}.html").write_text(animation(found))
    console.print(str(found), highlight=False, markup=False, soft_wrap=True)
    for suffix in ("png", "html"):
        console.print(f"{out / found.stem}.{suffix}", highlight=False, soft_wrap=True)


@scenes_app.command("export")
def export_scenes(
    file: Annotated[Path, typer.Argument(help="A file with scenes, recorded or generated.")],
    to: Annotated[str, typer.Option(help="scenarionet, scenarionet-json, openscenario, or fcd.")],
    out: Annotated[Path, typer.Option(help="Folder for the files.")],
    scene: Annotated[int | None, typer.Option(min=0, help="Which scene of the file [default: all of them].")] = None,
) -> None:
    """Write scenes as ScenarioNet's dictionaries (npz or JSON), OpenSCENARIO XML, or SUMO's floating-car data."""
    from ..scenarios.driving.export import export, require_format
    from ..scenarios.driving.files import read_scenes, scene_files

    require_format(to)
    path = scene_files([file])[0]
    stems: set[str] = set()
    for number, found in enumerate(read_scenes(path)):
        if scene is not None and number != scene:
            continue
        out.mkdir(parents=True, exist_ok=True)
        stem = found.stem if found.stem not in stems else f"{found.stem}-{number}"
        stems.add(stem)
        console.print(str(export(found, to, out, stem)), highlight=False, markup=False, soft_wrap=True)
    if not stems:
        raise InputError(f"{path}: has no scene {scene}; they are counted from 0")


@scenes_app.command("from-sumo")
def from_sumo(
    out: Annotated[Path, typer.Option(help="Folder for the scenes.")],
    config: Annotated[
        Path | None, typer.Argument(help="YAML configuration of a case, or a .sumocfg; without one, the built-in town.")
    ] = None,
    overrides: Overrides = None,
    fcd: Annotated[
        Path | None, typer.Option(help="Cut from this record of a simulation (sumo --fcd-output) instead; with --net.")
    ] = None,
    net: Annotated[Path | None, typer.Option(help="The record's network, .net.xml.")] = None,
    scenes: Annotated[int, typer.Option(min=1, help="How many.")] = 20,
    history: Annotated[float, typer.Option(min=0.1, help="Seconds that a predictor may see.")] = 5.0,
    future: Annotated[float, typer.Option(min=0.1, help="Seconds after them.")] = 6.0,
    step: Annotated[float, typer.Option(min=0.01, max=1.0, help="Seconds between two steps, of a simulation.")] = 0.1,
    radius: Annotated[float, typer.Option(min=10.0, help="Metres around a junction.")] = 100.0,
    begin: Annotated[float, typer.Option(min=0.0, help="Seconds before the first scene.")] = 300.0,
    pause: Annotated[float, typer.Option(min=0.0, help="Seconds between scenes at different times.")] = 30.0,
    seed: Annotated[int, typer.Option(min=0, help="Of SUMO, of who drives, and of the places.")] = 0,
) -> None:
    """Simulate traffic and cut driving scenes out of it, around junctions where something is going on.

    Drivers of a case take the routes that its files publish, or those of tastes drawn at random. Scenes are written as they
    are complete (`NAME.scene.npz`); the last line says how many. A record has neither lights nor the sizes of vehicles.
    """
    from .progress import Progress
    from .scenes import Wanted, scenes_from_record, scenes_from_sumo

    if (fcd is None) != (net is None) or (fcd is not None and (config is not None or overrides)):
        raise InputError(
            "a record is cut by --fcd FILE --net FILE, without a configuration; a simulation without these two"
        )
    wanted = Wanted(scenes, begin, history, future, radius, pause, seed)
    with Progress(console) as progress:
        if fcd is not None and net is not None:
            written = scenes_from_record(fcd, net, wanted, out, progress)
        else:
            written = scenes_from_sumo(config, overrides, step, wanted, out, progress)
    if len(written) < scenes:
        console.print("the simulation ended before there were more")
    console.print(
        f"{len(written)} scenes in {out}; `throng scenes check {out}` lists them", highlight=False, soft_wrap=True
    )
