"""Paper tables as LaTeX with booktabs."""

from __future__ import annotations

import re

from peftbench.report.papers.layout import ROW, PageLine, TablePage, Text

PACKAGES = ("booktabs", "graphicx")
_SIGNS = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",  # the upright one is not in every font encoding
    "`": r"\textasciigrave{}",
    "“": "``",
    "”": "''",
    "‘": "`",
    "’": "'",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": "$-$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "·": r"$\cdot$",
    "²": r"$^2$",
    "\n": " ",
}
# what a kernel from 2018 on prints without a further package: Latin-1 and Latin Extended-A letters
_LETTERS = range(0xC0, 0x17F)


def escape(text: str) -> str:
    """`text` as text: no command, no other mode. Signs that fonts may lack become `U+4E2D`."""
    return "".join(_sign(sign) for sign in text)


def render(page: TablePage) -> str:
    """A `table` environment to include; it shrinks to the width of the line where it is wider."""
    columns = len(page.columns)
    lines = [
        f"% {_needed(' ')}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(page.title)}}}",
        rf"\label{{tab:{re.sub('[^A-Za-z0-9_.-]', '-', page.name)}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{l{'r' * columns}}}",
        r"\toprule",
        *_headings(page),
        " & ".join(["Method", *map(_text, page.columns)]) + r" \\",
    ]
    for title, rows in page.blocks:
        lines.append(r"\midrule")
        if title:
            lines.append(rf"\multicolumn{{{columns + 1}}}{{l}}{{\textit{{{escape(title)}}}}} \\")
        lines += [_row(row) for row in rows]
    lines += [r"\bottomrule", r"\end{tabular}}"]
    closing = [rf"\textsuperscript{{{mark}}} {escape(note)}" for mark, note in page.notes]
    closing += [escape(remark) for remark in page.remarks]
    if closing:
        body = " \\par\n".join(closing)
        lines += [rf"\par\smallskip\raggedright\footnotesize {body} \par"]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def document(fragment: str) -> str:
    """A whole document around what `render` made."""
    return "\n".join(
        [
            r"\documentclass{article}",
            _needed("\n"),
            r"\begin{document}",
            fragment.rstrip("\n"),
            r"\end{document}",
            "",
        ]
    )


def _needed(between: str) -> str:
    return between.join(rf"\usepackage{{{name}}}" for name in PACKAGES)


def _sign(sign: str) -> str:
    if sign in _SIGNS:
        return _SIGNS[sign]
    if " " <= sign <= "~" or ord(sign) in _LETTERS:
        return sign
    return f"U+{ord(sign):04X}"


def _headings(page: TablePage) -> list[str]:
    """A line of headings over several columns, and the rules below them; none where all lack."""
    if not any(text for text, _ in page.headings):
        return []
    parts, rules, start = [""], [], 2
    for text, count in page.headings:
        parts.append(rf"\multicolumn{{{count}}}{{c}}{{{escape(text)}}}")
        if text:
            rules.append(rf"\cmidrule(lr){{{start}-{start + count - 1}}}")
        start += count
    return [" & ".join(parts) + r" \\", " ".join(rules)]


def _row(line: PageLine) -> str:
    texts = [_text(line.label), *map(_text, line.texts)]
    if line.kind != ROW:
        texts = [rf"\textit{{{text}}}" if text else "" for text in texts]
        texts[0] = rf"\quad {texts[0]}"
    return " & ".join(texts) + r" \\"


def _text(text: Text) -> str:
    marks = rf"\textsuperscript{{{','.join(text.marks)}}}" if text.marks else ""
    return f"{escape(text.plain)}{marks}"
