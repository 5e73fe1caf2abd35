"""What the report of a run and that of a what-if call the same things, and tables that one of them has more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """What the two sides of a report are called: of a run, what was observed and what its policies make of it."""

    first: str = "observed"
    second: str = "simulated"
    sample: str = "seeds"  # what simulations differ in
    missing: str = "not observed"  # of a road without a value
    roads: str = ""  # what the first roads of `order` are; "": by their congestion
    effects: str = "What drivers want"  # heading of the chart with intervals
    effects_text: str = (
        "Mean preference of the population. Positive: drivers like roads with more of the feature and go out of their way "
        "for them; negative: they avoid them. In reward per standard deviation of the feature, so that features compare. "
        "Dot: mean over the ensemble of good candidates; bar: 90 % interval over it."
    )
    no_effects: str = "The latent has no named features (a table): there are no preferences to draw."
    effects_title: str = "Population preferences, 90 % interval"
    effect: str = "reward per standard deviation of the feature"
    lower: str = "drivers avoid it"
    higher: str = "drivers like it"
    dot: str = "mean of the ensemble"
    row: str = "feature"

    @property
    def difference(self) -> str:
        return f"{self.second} − {self.first}"


@dataclass(frozen=True)
class Section:
    """A table of a report with its heading."""

    heading: str
    text: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]  # the first cell names the row
    folded: str = ""  # what to click for the table; "": it is shown


OF_A_RUN = Words()
