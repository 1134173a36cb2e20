"""The tables of a report: runs, cells, text."""
