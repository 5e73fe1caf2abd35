r"""MASDiff's third question: does the search scale with the number of vehicles? (its Tables 1 and 2)

    python bench/growth.py --truths 0 1 2 --seeds 0 1        the paper's three sizes, and denser traffic

For times, on a quiet machine and with all its processors (errors above were measured with one, beside other runs):

    throng compare --methods masdiff,cgan,ldm-imit --truths 0 --seeds 0 --out runs/times/1557-30 --name first
    python bench/growth.py --truths 0 --seeds 0 --cases 2758 4423 --first runs/times/1557-30/first.json --runs runs/times \
      --name growth-times

The paper's larger cases last longer (30, 60, 90 minutes), so that traffic gets no denser; here the town is also filled up
within the same 30 minutes. Every search is an ordinary run of `throng compare` below --runs; finished ones are not repeated.
Times are of whole searches as they passed: run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from throng.platform.compare import COLOURS, Score, compare
from throng.platform.methods import OWN, chosen

METHODS = [OWN, "cgan", "ldm-imit"]
CASES = {  # name -> vehicles, minutes
    "1557": (1557, 30), "2758": (2758, 60), "4423": (4423, 90), "denser 1900": (1900, 30), "denser 2300": (2300, 30),
}  # fmt: skip
PAPER = {  # Tables 1 and 2: error and minutes; printed beside ours as ratios only, the networks differ
    "1557": {OWN: (1.69, 101), "cgan": (1.76, 172), "ldm-imit": (2.02, 114)},
    "2758": {OWN: (2.19, 139), "cgan": (5.32, 246), "ldm-imit": (2.40, 123)},
    "4423": {OWN: (2.46, 218), "cgan": (7.24, 259), "ldm-imit": (2.91, 141)},
}


def ratios(scores: list[Score], other: str, value: str) -> np.ndarray:
    """Of our search to the other on the same truth and seed."""
    found = {(one.method, one.truth, one.seed): float(getattr(one, value)) for one in scores}
    pairs = [(one.truth, one.seed) for one in scores if one.method == other]
    return np.array([found[(OWN, *pair)] / found[(other, *pair)] for pair in pairs if (OWN, *pair) in found])


def spread(values: list[float] | np.ndarray) -> str:
    sd = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{sd}"


def table(results: dict[str, list[Score]]) -> list[str]:
    lines = [
        "| vehicles, minutes | method | error | gap | seconds | our error ÷ its | our time ÷ its | paper: error ÷, time ÷ |",
        "|" + "---|" * 8,
    ]
    for name, scores in results.items():
        vehicles, minutes = CASES[name]
        for method in METHODS:
            mine = [one for one in scores if one.method == method]
            if not mine:
                continue
            compared = ["–", "–", "–"]
            if method != OWN:
                compared[:2] = [spread(ratios(scores, method, value)) for value in ("rmse", "seconds")]
                if name in PAPER:
                    own, its = PAPER[name][OWN], PAPER[name][method]
                    compared[2] = f"{own[0] / its[0]:.2f}, {own[1] / its[1]:.2f}"
            cells = [
                f"{vehicles:,}, {minutes}", method, spread([one.rmse for one in mine]),
                spread([one.gap for one in mine]), spread([one.seconds for one in mine]), *compared,
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
        known = mine[0].references
        for reference in known:
            errors = [one.references[reference] for one in scores if one.method == OWN and reference in one.references]
            lines.append(f"| {vehicles:,}, {minutes} | {reference} | {spread(errors)} | – | – | – | – | – |")
    return lines


def picture(results: dict[str, list[Score]]) -> Figure:
    """Errors by case and method; floors as grey lines."""
    figure = Figure(figsize=(9, 4.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    for i, scores in enumerate(results.values()):
        for k, method in enumerate(METHODS):
            errors = [one.rmse for one in scores if one.method == method]
            x = i + 0.22 * (k - 1)
            axes.plot([x] * len(errors), errors, "o", color=COLOURS[k], markersize=4, alpha=0.6, markeredgewidth=0)
            axes.plot([x], [np.mean(errors)], "_", color=COLOURS[k], markersize=18, label=None if i else method)
        for name, dash in (("identifiability-floor", "-"), ("fastest", ":")):
            level = np.mean([one.references[name] for one in scores if name in one.references])
            axes.plot([i - 0.4, i + 0.4], [level] * 2, dash, color="#5c636b", linewidth=1, label=None if i else name)
    axes.set_xticks(range(len(results)), [f"{CASES[n][0]:,} vehicles\n{CASES[n][1]} min" for n in results])
    axes.set_ylabel("error on fresh seeds, vehicles")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=5, loc="upper left")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cases = list(CASES)[1:]
    parser.add_argument("--cases", nargs="+", choices=cases, default=cases, help="which sizes, beside the first")
    parser.add_argument(
        "--first", type=Path, default=Path("docs/results/rq1-queue.json"),
        help="scores of 1,557 vehicles, which the first question has made (throng compare)",
    )  # fmt: skip
    parser.add_argument("--truths", type=int, nargs="+", default=[0, 1, 2], help="hidden truths")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="search seeds")
    parser.add_argument("--set", action="append", default=[], dest="sets", metavar="KEY=VALUE")
    parser.add_argument("--runs", type=Path, default=Path("runs/growth"), help="where the runs go")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="where the table goes")
    parser.add_argument("--name", default="growth", help="of the table and the picture")
    given = parser.parse_args()
    known = json.loads(given.first.read_text())["scores"]
    first = [Score(**one) for one in known if one["method"] in METHODS]
    results = {"1557": [one for one in first if one.truth in given.truths and one.seed in given.seeds]}
    for name in given.cases:
        vehicles, minutes = CASES[name]
        town = f"scenario={{town: {{vehicles: {vehicles}, minutes: {minutes}}}}}"
        folder = given.runs / f"{vehicles}-{minutes}"
        results[name] = compare(
            None, [town, *given.sets], chosen(METHODS), given.truths, given.seeds, folder, Console()
        )
    command = f"python bench/growth.py --truths {' '.join(map(str, given.truths))}"
    command += f" --seeds {' '.join(map(str, given.seeds))}" + "".join(f" --set {one}" for one in given.sets)
    if given.cases != cases:
        command += " --cases " + " ".join(f'"{one}"' for one in given.cases)
    if given.name != "growth":
        command += f" --first {given.first} --runs {given.runs} --name {given.name}"
    write(results, command, given.out, given.name)


def write(results: dict[str, list[Score]], command: str, out: Path, name: str) -> None:
    """Table, picture and scores."""
    out.mkdir(parents=True, exist_ok=True)
    picture(results).savefig(out / f"{name}.png", format="png")
    data = {case: [asdict(one) for one in scores] for case, scores in results.items()}
    (out / f"{name}.json").write_text(json.dumps(data, indent=1))
    text = [f"### {name}", "", f"`{command}`", "", *table(results), "", f"![errors]({name}.png)", ""]
    (out / f"{name}.md").write_text("\n".join(text))
    print("\n".join(text))


if __name__ == "__main__":
    main()
