"""What is answered together: the data sets of a suite, and each of one's own data sets alone."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from peftbench.report.view import View


@dataclass(frozen=True, eq=False)
class Section:
    """Runs that may be compared, of one backbone and of one suite or one data set."""

    heading: str  # of the backbone, as tables name it
    suite: str  # or one's own data set
    own: bool
    runs: pd.DataFrame  # some of `View.scored`
    remarks: tuple[str, ...]
    view: View  # that they are of

    @property
    def title(self) -> str:
        """As a heading of a part: `vit_mini · mini`."""
        return " · ".join(filter(None, (self.heading, self.suite)))


def sections(view: View) -> list[Section]:
    """Of the finished runs of a view: one for each backbone and suite.

    One's own data sets that belong to no suite have nothing in common, and get one each.
    """
    return [
        Section(
            str(heading),
            str(suite),
            bool(part["own"].all()),
            part,
            tuple(view.remarks[str(heading), str(suite)]),
            view,
        )
        for (heading, suite), part in view.scored.groupby(["heading", "suite"], sort=True)
    ]
