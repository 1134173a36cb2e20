"""Tables of papers as data: which rows and columns a table has, and where its numbers come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from peftbench.report.scores import SCORE

# Kinds of columns.
TASK = "task"  # one data set
MEAN = "mean"  # over all its data sets alike
MEAN_OF_GROUPS = "mean of groups"  # mean over the groups of the suite of the means inside them
WINS = "wins"  # data sets on which the row is better than the row `against`
TOTAL = "total parameters"  # what all tasks need together, as a multiple of the backbone
PARAMETERS = "parameters"  # that train for one task, in millions
KINDS = (TASK, MEAN, MEAN_OF_GROUPS, WINS, TOTAL, PARAMETERS)
ACCURACIES = (TASK, MEAN, MEAN_OF_GROUPS)
OVER_TASKS, OVER_GROUPS = "tasks", "groups"


@dataclass(frozen=True)
class PaperTask:
    """A data set of a table: what it is called in runs and in published numbers.

    `suite` and `published_suite` may hold names in braces, which a row fills: `{shots}`.
    """

    key: str  # "vtab/kitti"
    title: str
    group: str  # "vtab.structured"
    dataset: str  # of the runs
    published_suite: str
    published_dataset: str
    suite: str = ""  # of the runs, where one data set is in several
    metric: str = SCORE  # column of the table of runs, or metric of the record
    lower_is_better: bool = False
    draws: int = 1  # of its training images; a cell is the mean over them


@dataclass(frozen=True)
class PaperColumn:
    """One column. Its unit is percent, a multiple, millions or a number of tasks."""

    key: str
    kind: str
    title: str
    tasks: tuple[str, ...]
    heading: str = ""  # over several columns
    decimals: int = 1
    # suite and name of the average in published numbers; it is computed where a paper prints none
    published: tuple[str, str] | None = None
    against: str = ""  # of wins: the title of a row
    head: bool = True  # of parameters: whether the classifier counts
    average: str = OVER_TASKS  # of parameters

    @property
    def unit(self) -> str:
        if self.kind in ACCURACIES:
            return "percent"
        return {WINS: "tasks", TOTAL: "backbones", PARAMETERS: "millions"}[self.kind]

    def is_baseline(self, row: Row) -> bool:
        """Whether the wins of this column are counted over that row."""
        return self.kind == WINS and self.against == row.title


@dataclass(frozen=True)
class Series:
    """Where the published numbers of a row are: four columns of `peftbench.results.published`."""

    paper: str
    backbone: str
    pretrain: str
    method: str = ""


@dataclass(frozen=True)
class Row:
    """One method of a table: the runs that fill the row, and what papers print of it."""

    title: str
    method: str | None  # registered name; `None` where peftbench has no such method
    settings: Mapping[str, str] = field(default_factory=dict)  # hyper-parameters as spelled in runs
    # timm tags or titles of backbones that fill the row, maybe patterns; that of the paper first
    weights: tuple[str, ...] = ()
    published: Series | None = None
    printed: Mapping[str, float] = field(default_factory=dict)  # by column, beyond the collection
    values: Mapping[str, str] = field(default_factory=dict)  # for names in braces
    notes: tuple[str, ...] = ()

    def fill(self, pattern: str) -> str:
        """`pattern` with the names in braces replaced by the values of this row."""
        return pattern.format_map(self.values) if "{" in pattern else pattern


@dataclass(frozen=True)
class Block:
    """Rows below one line; a table of one block has no such line."""

    title: str
    rows: tuple[Row, ...]
    series: Series  # of most of its published numbers; a row from elsewhere is marked


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper: its layout, the experiment that measures it, how far it may differ."""

    name: str
    title: str
    source: str
    experiment: str
    protocol: str  # of the paper, and of the runs that fill the table
    tasks: Mapping[str, PaperTask]
    columns: tuple[PaperColumn, ...]
    blocks: tuple[Block, ...]
    tolerance: Mapping[str, float]  # by key or kind of column, in its unit
    differs: tuple[str, ...] = ()  # what is different from the paper whatever one runs
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[Row, ...]:
        return tuple(row for block in self.blocks for row in block.rows)

    def tolerance_of(self, column: PaperColumn) -> float | None:
        """How far a cell of the column may be from the paper; `None` where it is not judged."""
        return self.tolerance.get(column.key, self.tolerance.get(column.kind))
