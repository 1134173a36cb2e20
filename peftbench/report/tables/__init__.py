"""The tables of a report: runs, cells, text."""

from peftbench.report.scores import SCORES
from peftbench.report.tables.cells import labelled, overall, summary
from peftbench.report.tables.text import to_csv, to_markdown, to_text

__all__ = ["SCORES", "labelled", "overall", "summary", "to_csv", "to_markdown", "to_text"]
