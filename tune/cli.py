"""The whole command line: the commands of the platform, and `throng sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..platform.cli import app, main
from ..platform.cli_options import Overrides, console

BEST = 10  # trials shown


@app.command()
def sweep(
    spec: Annotated[Path, typer.Argument(help="YAML file of the sweep; tune/spaces/ has ready ones.")],
    overrides: Overrides = None,  # noqa: RUF013  it is optional: ruff does not see through the name
    out: Annotated[Path | None, typer.Option(help="Folder [default: runs/NAME].")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Trials [default: the file's].")] = None,
    address: Annotated[str, typer.Option(help="Of Ray: `local` starts it here, `auto` uses a running one.")] = "local",
) -> None:
    """Search the settings of whole experiments with Ray Tune: at random, in a grid, by Optuna, or by evolution.

    A trial is an ordinary run below OUT/trials; those that do worse than others at the same budget are stopped early. The
    same command again goes on where it stopped. Fine-tunings (a case with `system:`) are judged by their CCE-gap, or, where
    none is measured, by their return. Files in OUT: NAME.md (the table), NAME.png (parallel coordinates),
    NAME.json, best.yaml (for `throng run`).
    """
    from .results import cells, explained, headings, ranked, write
    from .spec import load_spec
    from .sweep import save_best
    from .sweep import sweep as run_sweep

    given = load_spec(spec, overrides)
    if samples is not None:
        given = given.model_copy(update={"samples": samples})
    folder = out if out is not None else Path("runs") / given.name
    plan = run_sweep(given, folder, address, console)
    sets = "".join(f" --set {setting}" for setting in overrides or [])
    path = write(plan, f"throng sweep {spec}{sets}")
    best = save_best(plan)
    table = Table(box=None, padding=(0, 1, 0, 0))
    for heading in headings(given):
        table.add_column(heading, justify="right" if heading else "left", overflow="fold")
    for i, trial in enumerate(ranked(plan)[:BEST]):
        table.add_row(*cells(trial, given), style="" if i else "bold")
    console.print(table)
    console.print(explained(given), style="dim", highlight=False)
    console.print(
        f"table: {path}\npicture: {path.with_suffix('.png')}\nbest: throng run {best}", highlight=False, soft_wrap=True
    )


if __name__ == "__main__":
    main()
