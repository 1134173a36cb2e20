"""The report as one file: a page that opens without a network and asks for nothing from any."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from peftbench.report.figures.histories import QUANTITIES
from peftbench.report.page.facts import failures, interrupted, method_parts, provenance
from peftbench.report.page.panels import costs, markers, method_styles, panels
from peftbench.report.scores import SCORES, SHORT, metric_of
from peftbench.report.tables.text import to_csv
from peftbench.report.view import View, Views
from peftbench.report.words import counted
from peftbench.results.record import Status
from peftbench.results.store import ResultsStore
from peftbench.results.table_files import csv_text, epochs_name

SCRIPTS = (
    *("dom.js", "tables.js", "scatter.js", "curves.js"),
    *("matrix.js", "pictures.js", "images.js", "main.js"),
)
MOST_EPOCHS = 500_000  # rows; the page of so many has 30 MB of them, and they stand in a file
COMPRESSED = 400_000  # bytes from which a download is stored as gzip
INTERVAL = (
    "Lines are 95 % intervals over seeds (Student's, corrected for skewness), which one seed has "
    "not, or of one's own images over new images; point at one to see what it is over, and how "
    "often it holds in simulations."
)

EPOCHS = "One row an epoch; run_id leads to the runs."


@dataclass(frozen=True)
class Download:
    """A file inside the page."""

    name: str
    meaning: str
    size: str
    uri: str


def render(
    views: Views,
    epochs: pd.DataFrame,
    store: ResultsStore,
    *,
    broken: Sequence[str] = (),
    metric: str | None = None,
    images: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The page of the runs of `views` and their epochs; cards come from the artefacts in `store`.

    The same records give the same text. Names and messages are shown as text, whatever they hold:
    the template escapes, the script makes text nodes, and a policy in the page lets nothing run
    but that script and nothing load at all. `broken` are messages about unreadable files, `images`
    what `images.parts` gives. A panel opens with the metric that its runs declare, unless one is
    given for all. More than `MOST_EPOCHS` rows of epochs are not in it: the page names the file of
    `table_files.write_epochs`, which is to stand beside it.
    """
    table, shown = views.table, metric or metric_of(views.table)
    view = views.view(shown)
    content = panels(views, epochs, metric)
    data = {
        "panels": content,
        "first": _first(content),
        "metrics": {name: title for name, title in SCORES.items() if _has(content, name)},
        "quantities": QUANTITIES,
        "costs": costs(),
        "interval": INTERVAL,
        "images": list(images),
        "looks": (styles := method_styles(map(str, table["method"].dropna()))),
        "markers": markers(style["marker"] for style in styles.values()),
    }
    style = _file("style.css")
    script = '"use strict";\n' + "\n".join(_file(name) for name in SCRIPTS)
    heading, lead = _words(table)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_file("page.html")).render(
        title=f"peftbench: {heading}",
        heading=heading,
        lead=lead,
        style=Markup(style),
        style_hash=_hash(style),
        script=Markup(script),
        script_hash=_hash(script),
        data=Markup(_json(data)),
        methods=method_parts(view, store),
        metric=SHORT[shown],
        failures=failures(table),
        interrupted=interrupted(table),
        images=len(images),
        broken=broken,
        provenance=provenance(table),
        downloads=_downloads(view, epochs),
        beside=epochs_name() if len(epochs) > MOST_EPOCHS else "",
        epochs=EPOCHS,
    )


def _first(content: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The panel to open with: the one with most finished cells."""

    def finished(panel: Mapping[str, Any]) -> int:
        rows = panel["scores"][panel["metric"]]
        return sum(cell["state"] == "ok" for row in rows for cell in row["cells"].values())

    best = max(content, key=finished, default={"backbone": "", "suite": ""})
    return {name: str(best[name]) for name in ("backbone", "suite")}


def _has(content: Sequence[Mapping[str, Any]], metric: str) -> bool:
    """Whether a panel shows a metric."""
    return any(metric in panel["scores"] for panel in content)


def _words(table: pd.DataFrame) -> tuple[str, str]:
    """Heading and first sentences."""
    methods, backbones, datasets = (
        sorted(set(map(str, table[name].dropna()))) for name in ("method", "backbone", "dataset")
    )
    final = table[table["phase"] == "final"]
    done = int((table["status"] == str(Status.OK)).sum())
    refused = int((table["status"] == str(Status.UNSUPPORTED)).sum())
    interrupted = int((table["status"] == str(Status.INTERRUPTED)).sum())
    failed = len(table) - done - refused - interrupted
    seeds = final["seed"].nunique()
    where = " and ".join(backbones) if len(backbones) < 3 else counted(len(backbones), "backbone")
    heading = f"{counted(len(methods), 'way')} to tune {where}"
    parts = [f"{counted(len(table), 'run')} on {counted(len(datasets), 'data set')}"]
    parts[0] += f" with up to {counted(seeds, 'seed')}" if seeds else ""
    parts.append(f"{done} finished")
    parts += [f"{refused} refused because the pair makes no sense"] if refused else []
    parts += [f"{failed} did not finish"] if failed else []
    parts += [f"{interrupted} interrupted"] if interrupted else []
    return heading, f"{'; '.join(parts)}. Test scores, read once at the end of training."


def _downloads(view: View, epochs: pd.DataFrame) -> list[Download]:
    files_ = [
        (
            "runs.csv",
            csv_text(view.table),
            "One row a run with every digit: settings, scores, costs.",
        ),
        ("cells.csv", to_csv(view.cells), "One row a cell of the tables: mean, spread, n."),
    ]
    if len(epochs) <= MOST_EPOCHS:
        files_.append(("epochs.csv", csv_text(epochs), EPOCHS))
    return [_download(name, text.encode(), meaning) for name, text, meaning in files_]


def _download(name: str, content: bytes, meaning: str) -> Download:
    kind = "text/csv"
    if len(content) > COMPRESSED:
        name, kind = f"{name}.gz", "application/gzip"
        # level 9 saves 3 % in eight times as long; without a time equal data are equal files
        content = gzip.compress(content, compresslevel=4, mtime=0)
    size = f"{len(content) / 1000:,.0f} kB" if len(content) >= 1000 else f"{len(content)} bytes"
    uri = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return Download(name, meaning, size, uri)


def _json(value: Any) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _hash(text: str) -> str:
    """The source of a content security policy that allows this very text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _file(name: str) -> str:
    return files(__package__).joinpath("files", name).read_text(encoding="utf-8")
