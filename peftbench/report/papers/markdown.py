"""Paper tables as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from peftbench.report.papers.layout import ROW, PageLine, TablePage, Text

# signs that would start markup, or end the cell
_SIGNS = {sign: f"\\{sign}" for sign in "\\`*_[]|~#"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
_ESCAPES = str.maketrans({**_SIGNS, "\n": " "})


def escape(text: str) -> str:
    """`text` as text: no markup, no HTML, one line."""
    return text.translate(_ESCAPES)


def render(page: TablePage) -> str:
    """A heading, a pipe table whose columns line up, footnotes and remarks."""
    head = ["method", *map(_text, page.unique_columns)]
    rows: list[list[str]] = []
    for title, lines in page.blocks:
        if title:
            rows.append([f"**{escape(title)}**", *[""] * len(page.columns)])
        rows += [_row(line) for line in lines]
    parts = [
        f"### {escape(page.title)}",
        _table([head, *rows]),
        "\n".join(
            [
                *(f"- \\[{mark}\\] {escape(note)}" for mark, note in page.notes),
                *(f"- {_wrapped(remark)}" for remark in page.remarks),
            ]
        ),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _row(line: PageLine) -> list[str]:
    if line.kind == ROW:
        return [_text(line.label), *map(_text, line.texts)]
    italic = (f"*{_text(text)}*" if text.value else "" for text in line.texts)
    return [f"*{_text(line.label)}*", *italic]


def _text(text: Text) -> str:
    marks = f" \\[{','.join(text.marks)}\\]" if text.marks else ""
    return f"{escape(text.plain)}{marks}"


def _wrapped(text: str) -> str:
    """Further lines of a remark belong to its item."""
    return "\n  ".join(escape(line) for line in text.split("\n"))


def _table(grid: Sequence[Sequence[str]]) -> str:
    sizes = [max(3, *map(len, column)) for column in zip(*grid, strict=True)]
    head, *body = [
        "| "
        + " | ".join(
            text.ljust(size) if i == 0 else text.rjust(size)
            for i, (text, size) in enumerate(zip(row, sizes, strict=True))
        )
        + " |"
        for row in grid
    ]
    rule = ["-" * sizes[0], *("-" * (size - 1) + ":" for size in sizes[1:])]
    return "\n".join([head, f"| {' | '.join(rule)} |", *body])
