"""Results over several hidden truths and search seeds, as a table with spread: what docs/results/ holds.

    python bench/study.py town --truths 0 1 2 --seeds 0 1                 the built-in town
    python bench/study.py town --truths 0 1 2 --seeds 0 1 --set latent.kind=table --name table
    python bench/study.py examples/bologna.yaml --seeds 0 1               a real city

Each run is an ordinary `throng run` below --runs; finished ones are not repeated, interrupted ones go on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from throng.platform.config import load_config
from throng.platform.experiment import run
from throng.platform.references import FASTEST, IDENTIFIABILITY, PRIOR, SEED_FLOOR, SHORTEST

COLUMNS = (SEED_FLOOR, IDENTIFIABILITY, "throng", SHORTEST, FASTEST, PRIOR)


def one_run(config: Path | None, truth: int, seed: int, sets: list[str], directory: Path) -> dict[str, Any]:
    settings = load_config(config, [f"target.truth_seed={truth}", f"seed={seed}", *sets])
    store = run(settings, directory, resume=False, console=Console())
    evaluation, result = store.read_json("evaluation.json"), store.read_json("result.json")
    assert evaluation is not None
    assert result is not None
    rows = {row["method"]: row for row in evaluation["rows"]}
    return {"truth": truth, "seed": seed, "rows": rows, "floor": evaluation["floor"], "result": result}


def number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None or not np.isfinite(value) else f"{value:.{digits}f}"


def table(runs: list[dict[str, Any]]) -> list[str]:
    names = [name for name in COLUMNS if name in runs[0]["rows"]]
    lines = [
        "| truth | search seed | " + " | ".join(names) + " | ÷ identifiability | way to seed floor | simulations |",
        "|" + "---|" * (len(names) + 5),
    ]
    for one in runs:
        rows = one["rows"]
        cells = [f"{number(rows[n]['rmse'])} ± {number(rows[n]['rmse_sd'])}" for n in names]
        lines.append(
            f"| {one['truth']} | {one['seed']} | {' | '.join(cells)} | {number(ratio(one))} | "
            f"{number(100 * way(one), 0)} % | {one['result']['spent']:.1f} |"
        )
    return lines


def ratio(one: dict[str, Any]) -> float:
    rows = one["rows"]
    return rows["throng"]["rmse"] / rows[IDENTIFIABILITY]["rmse"] if IDENTIFIABILITY in rows else float("nan")


def way(one: dict[str, Any]) -> float:
    return 1.0 - float(one["rows"]["throng"]["gap"])


def summary(runs: list[dict[str, Any]]) -> list[str]:
    def spread(values: list[float]) -> str:
        array = np.array(values)
        return f"{array.mean():.3f} (s.d. {array.std(ddof=1) if array.size > 1 else float('nan'):.3f}, worst {{}})"

    ratios, ways = [ratio(one) for one in runs], [way(one) for one in runs]
    below = {
        null: sum(one["rows"]["throng"]["rmse"] < one["rows"][null]["rmse"] for one in runs)
        for null in (SHORTEST, FASTEST)
    }
    lines = []
    if np.isfinite(ratios).all():
        lines.append(f"- error ÷ identifiability floor: {spread(ratios).format(f'{max(ratios):.3f}')}")
    lines.append(f"- way from prior mean to seed floor: {spread(ways).format(f'{min(ways):.3f}')}")
    lines += [f"- below {null} routing in {count} of {len(runs)} runs" for null, count in below.items()]
    lines.append(f"- micro-equivalent simulations: at most {max(one['result']['spent'] for one in runs):.1f}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", help="town, or a configuration file")
    parser.add_argument("--truths", type=int, nargs="+", default=[0], help="hidden truths (target.truth_seed)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="search seeds")
    parser.add_argument("--set", action="append", default=[], dest="sets", metavar="KEY=VALUE")
    parser.add_argument("--name", help="of the results file [default: the case's name]")
    parser.add_argument("--runs", type=Path, default=Path("runs/study"), help="where the runs go")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="where the table goes")
    given = parser.parse_args()
    config = None if given.case == "town" else Path(given.case)
    name = given.name or (config.stem if config else "town")
    runs = [
        one_run(config, truth, seed, given.sets, given.runs / f"{name}-truth{truth}-seed{seed}")
        for truth in given.truths
        for seed in given.seeds
    ]
    sets = "".join(f" --set {setting}" for setting in given.sets)
    numbers = {"--truths": given.truths, "--seeds": given.seeds}
    command = f"python bench/study.py {given.case} " + " ".join(
        f"{flag} {' '.join(map(str, values))}" for flag, values in numbers.items()
    )
    command += sets + (f" --name {given.name}" if given.name else "")
    given.out.mkdir(parents=True, exist_ok=True)
    text = [f"### {name}", "", f"`{command}`", "", *table(runs), "", *summary(runs), ""]
    (given.out / f"{name}.md").write_text("\n".join(text))
    (given.out / f"{name}.json").write_text(json.dumps(runs, indent=1))
    print("\n".join(text))


if __name__ == "__main__":
    main()
