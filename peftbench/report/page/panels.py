"""What the page draws: numbers of each backbone and suite as plain values for its script."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from peftbench.report.costs import COSTS, measured
from peftbench.report.figures.histories import QUANTITIES, histories, in_order
from peftbench.report.figures.style import COLOURS, style_of
from peftbench.report.scores import SCORE, SCORES, metric_of
from peftbench.report.spreads import RowKey, leaders, spreads
from peftbench.report.tables.cells import OK, TASK
from peftbench.report.tables.text import ranking
from peftbench.report.verdict import verdict
from peftbench.report.view import View, Views
from peftbench.statistics.coverage import describe
from peftbench.statistics.intervals import Interval

DIGITS = 6  # significant digits on the page; its downloads keep every one
MOST_EPOCHS = 60  # points of a learning curve; longer ones are thinned


def panels(views: Views, epochs: pd.DataFrame, metric: str | None = None) -> list[dict[str, Any]]:
    """One entry for each backbone and suite with a finished or failed final run.

    Each opens with `metric`, or with the one that its runs declare, and has all that its runs have.
    """
    by_section: dict[tuple[str, str], dict[str, Any]] = {}
    measured_by = [m for m in SCORES if m == SCORE or views.table[m].notna().any()]
    best = {name: leaders(views.view(name)) for name in measured_by}
    first = {} if metric else _declared(views.view().labelled)
    for name in measured_by:
        known = spreads(views.view(name))
        for key, rows in _sections(views.view(name).cells):
            panel = by_section.setdefault(key, _panel(key, rows, views.table))
            panel["metric"] = metric or first.get(key, SCORE)
            if name == panel["metric"] or (rows["state"] == OK).any():
                panel["scores"][name] = _rows(rows, key, known)
                if panel["own"]:
                    order, remarks = ranking(rows)
                    panel["by_val"][name] = bool(order) and "by val" in remarks[0]
                    panel["ranking"][name] = remarks[0]
    prices = _prices(views.view().labelled)
    curves = _curves(views.view(), epochs)
    for key, panel in by_section.items():
        panel["costs"] = prices.get(key, {})
        panel["devices"] = sorted({price["device"] for price in panel["costs"].values()} - {""})
        panel["curves"] = curves.get(key, {})
        found_best = {name: best[name].get(key) for name in panel["scores"]}
        panel["best"] = {
            name: list(one.members) if one is not None and one.conclusive else []
            for name, one in found_best.items()
        }
        whole = next((a["name"] for a in panel["averages"]), "")
        panel["verdict"] = {
            name: "" if one is None else verdict(one, str(whole))
            for name, one in found_best.items()
        }
    return list(by_section.values())


def method_styles(methods: Iterable[str]) -> dict[str, Any]:
    """Index of the colour and name of the marker of each method."""
    return {
        method: {"colour": COLOURS.index(colour), "marker": marker}
        for method in sorted(set(methods))
        for colour, marker in [style_of(method)]
    }


def markers(names: Iterable[str]) -> dict[str, str]:
    """The outline of each of matplotlib's markers as the path of an SVG of two units, centred."""
    from matplotlib.markers import MarkerStyle
    from matplotlib.path import Path

    outlines = {}
    for name in sorted(set(names)):
        style = MarkerStyle(name)
        path = style.get_transform().transform_path(style.get_path())
        parts = []
        for points, code in path.iter_segments(curves=True):
            letter = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C"}
            if code == Path.CLOSEPOLY:
                parts.append("Z")
                continue
            pairs = zip(points[::2], points[1::2], strict=True)
            # the outline of a marker is one unit wide, and its y points up
            parts.append(letter[code] + " ".join(f"{_short(x)},{_short(-y)}" for x, y in pairs))
        outlines[name] = "".join(parts)
    return outlines


def _short(coordinate: float) -> str:
    return f"{round(2 * coordinate, 3) + 0.0:g}"  # no negative zero


def costs() -> list[dict[str, Any]]:
    """Every cost by name and heading; the script chooses among them."""
    return [
        {"name": c.name, "heading": c.heading, "short": c.short, "measured": c.measured}
        for c in COSTS.values()
    ]


def _declared(runs: pd.DataFrame) -> dict[tuple[str, str], str]:
    """The metric that the runs of each backbone and suite declare."""
    parts = runs.assign(suite=runs["suite"].fillna("")).groupby(["heading", "suite"])
    return {(str(heading), str(suite)): metric_of(part) for (heading, suite), part in parts}


def _sections(cells: pd.DataFrame) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    keyed = cells.assign(suite=cells["suite"].fillna(""))
    return [
        ((str(backbone), str(suite)), rows)
        for (backbone, suite), rows in keyed.groupby(["backbone", "suite"], sort=False)
    ]


def _panel(key: tuple[str, str], rows: pd.DataFrame, table: pd.DataFrame) -> dict[str, Any]:
    backbone, suite = key
    grouped = table.dropna(subset=["dataset", "group"])
    group_of = dict(zip(grouped["dataset"], grouped["group"], strict=True))
    pairs = list(dict.fromkeys(zip(rows["kind"], rows["column"], strict=True)))
    return {
        "backbone": backbone,
        "suite": suite,
        "averages": [{"kind": k, "name": name} for k, name in pairs if k != TASK],
        "tasks": [
            {"name": name, "short": name.rpartition("/")[2], "group": group_of.get(name, "")}
            for k, name in pairs
            if k == TASK
        ],
        "scores": {},
        "own": bool(rows["own"].iloc[0]),  # one's own data set, whose suite it is called
        "by_val": {},  # by metric, whether every row has a score on val
        "ranking": {},  # by metric, in words
    }


def _rows(
    rows: pd.DataFrame, key: tuple[str, str], known: Mapping[RowKey, Mapping[str, Interval]]
) -> list[dict[str, Any]]:
    by_label: dict[str, dict[str, Any]] = {}
    for cell in rows.to_dict("records"):
        row = by_label.setdefault(
            str(cell["label"]),
            {
                "label": str(cell["label"]),
                "method": str(cell["method"]),
                "parameters": _number(cell["params_tuned"]),
                "with_head": _number(cell["params_with_head"]),
                "cells": {},
            },
        )
        interval = known.get((*key, str(cell["label"])), {}).get(str(cell["column"]))
        row["cells"][str(cell["column"])] = _cell(cell, interval)
    return list(by_label.values())


def _cell(cell: Mapping[Any, Any], interval: Interval | None) -> dict[str, Any]:
    shown: dict[str, Any] = {"state": str(cell["state"])}
    if cell["state"] == OK:
        shown |= {name: _number(cell[name]) for name in ("mean", "sd", "n")}
        if not pd.isna(cell["val"]):
            shown["val"] = _number(cell["val"])
        if interval is not None and interval.low is not None:
            shown |= {"low": _number(interval.low), "high": _number(interval.high)}
            shown |= {"holds": describe([interval.holds]), "over": interval.over}
    if not pd.isna(cell["note"]):
        shown["note"] = str(cell["note"])
    return shown


def _prices(runs: pd.DataFrame) -> dict[tuple[str, str], dict[str, Any]]:
    """Costs of each row of a panel, by label: value, and range where it has one."""
    by_section: dict[tuple[str, str], dict[str, Any]] = defaultdict(dict)
    for price in measured(runs).to_dict("records"):
        suite = "" if pd.isna(price["suite"]) else str(price["suite"])
        device = "" if pd.isna(price["device"]) else str(price["device"])
        row = by_section[str(price["backbone"]), suite].setdefault(
            str(price["label"]), {"device": device}
        )
        if not pd.isna(price["value"]):
            row[str(price["cost"])] = [_number(price[n]) for n in ("value", "low", "high")]
    return dict(by_section)


def _curves(view: View, epochs: pd.DataFrame) -> dict[tuple[str, str], dict[str, Any]]:
    """Mean over seeds of each quantity, by panel, data set and label; "" is the mean of tasks."""
    runs = view.labelled
    panel_of = {
        run_id: (str(heading), str(suite))
        for run_id, heading, suite in zip(
            runs["run_id"], runs["heading"], runs["suite"].fillna(""), strict=True
        )
    }
    dataset_of = dict(zip(runs["run_id"], runs["dataset"].astype(str), strict=True))
    by_section: dict[tuple[str, str], dict[str, Any]] = defaultdict(dict)
    run, run_ids = pd.factorize(epochs["run_id"])
    for key in dict.fromkeys(panel_of.values()):
        in_panel = np.array([panel_of.get(run_id) == key for run_id in run_ids], dtype=bool)
        mine = epochs[in_panel[run]]
        in_turn = list(dict.fromkeys(dataset_of[run_id] for run_id in mine["run_id"].unique()))
        for quantity in QUANTITIES:
            known = histories(view, mine, quantity)
            drawn = {dataset for one in known for dataset in one.datasets}
            tasks: list[str | None] = [task for task in in_turn if task in drawn]
            for task in [*tasks, *([None] if len(tasks) > 1 else [])]:
                curves = by_section[key].setdefault(task or "", {}).setdefault(quantity, [])
                for line in in_order([one.line(task, MOST_EPOCHS) for one in known]):
                    curves.append(
                        {
                            "label": line.name,
                            "method": line.method,
                            "x": [place.x for place in line.places],
                            "y": [_number(place.mean, 4) for place in line.places],
                        }
                    )
    return dict(by_section)


def _number(value: Any, digits: int = DIGITS) -> float | int | None:
    if pd.isna(value):
        return None
    rounded = float(f"{float(value):.{digits}g}")
    return int(rounded) if rounded.is_integer() else rounded
