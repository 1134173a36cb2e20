"""Paper tables as HTML: a table to put into a page, or a page of its own that needs no network."""

from __future__ import annotations

from html import escape

from peftbench.report.papers.layout import PageLine, TablePage, Text

STYLE = """\
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem; }
.scroll { overflow-x: auto; }
table.paper { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
table.paper caption { font-weight: 600; padding-bottom: .6rem; text-align: left; }
table.paper thead th { border-bottom: 1px solid; }
table.paper thead tr:first-child > * { border-top: 2px solid; }
table.paper th[scope=colgroup] { text-align: center; }
table.paper sup { line-height: 0; }
.notes p { margin: .2rem 0; }
table.paper tbody { border-bottom: 1px solid; }
table.paper th, table.paper td { padding: .15rem .6rem; text-align: right; }
table.paper th[scope=row], table.paper th[scope=rowgroup], table.paper th:first-child {
  text-align: left; font-weight: inherit; }
table.paper th[scope=rowgroup] { font-style: italic; padding-top: .6rem; }
table.paper tr.published, table.paper tr.difference { opacity: .75; font-style: italic; }
table.paper tr.published th, table.paper tr.difference th { padding-left: 1.6rem; }
"""


def render(page: TablePage) -> str:
    """`<table>` with its footnotes; every text of the page stays text."""
    columns = len(page.columns)
    kind = "paper published-only" if page.published_only else "paper"
    rows = ["<thead>"]
    if any(text for text, _ in page.headings):
        over = "".join(
            f'<th colspan="{count}" scope="colgroup">{escape(text)}</th>'
            for text, count in page.headings
        )
        rows.append(f"<tr><td></td>{over}</tr>")
    titles = "".join(f'<th scope="col">{_text(title)}</th>' for title in page.columns)
    rows += [f'<tr><th scope="col">method</th>{titles}</tr>', "</thead>"]
    for title, lines in page.blocks:
        rows.append("<tbody>")
        if title:
            rows.append(
                f'<tr><th scope="rowgroup" colspan="{columns + 1}">{escape(title)}</th></tr>'
            )
        rows += [*map(_row, lines), "</tbody>"]
    notes = [f"<p><sup>{mark}</sup> {escape(note)}</p>" for mark, note in page.notes]
    notes += [f"<p>{escape(remark)}</p>" for remark in page.remarks]
    return "\n".join(
        [
            f'<div class="scroll"><table class="{kind}" id="table-{escape(page.name)}">',
            f"<caption>{escape(page.title)}</caption>",
            *rows,
            "</table></div>",
            *(['<div class="notes">', *notes, "</div>"] if notes else []),
        ]
    )


def document(fragment: str, title: str) -> str:
    """A whole page around what `render` made."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
        f"{fragment.rstrip()}\n</body>\n</html>\n"
    )


def _row(line: PageLine) -> str:
    cells = "".join(f"<td>{_text(text)}</td>" for text in line.texts)
    return f'<tr class="{line.kind}"><th scope="row">{_text(line.label)}</th>{cells}</tr>'


def _text(text: Text) -> str:
    marks = f"<sup>{','.join(text.marks)}</sup>" if text.marks else ""
    return f"{escape(text.plain)}{marks}"
