"""What is answered together: the data sets of a suite, and each of one's own data sets alone."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from peftbench.report.view import View


@dataclass(frozen=True, eq=False)
class Section:
    """Runs that may be compared, of one backbone and of one suite or one data set."""

    heading: str  # of the backbone, as tables name it
    suite: str
    own: str  # one's own data set that it is about; empty for those of a suite
    runs: pd.DataFrame  # some of `View.scored`
    remarks: tuple[str, ...]

    @property
    def title(self) -> str:
        """As a heading of a part: `vit_mini · mini`."""
        return " · ".join(filter(None, (self.heading, self.suite, self.own)))


def sections(view: View) -> list[Section]:
    """Of the finished runs of a view: one for each backbone and suite.

    One's own data sets that belong to no suite have nothing in common, and get one each.
    """
    runs = view.scored
    own = runs["dataset"].where(is_own(runs), "").astype("string").fillna("")
    keyed = runs.assign(own=own)
    return [
        Section(
            str(heading),
            str(suite),
            str(name),
            part.drop(columns="own"),
            tuple(view.remarks[str(heading), str(suite)]),
        )
        for (heading, suite, name), part in keyed.groupby(["heading", "suite", "own"], sort=True)
    ]


def is_own(runs: pd.DataFrame) -> pd.Series:
    """Whether each run is on a data set that a user brought and that belongs to no suite."""
    return runs["content"].notna() & (runs["suite"].fillna("") == "")
