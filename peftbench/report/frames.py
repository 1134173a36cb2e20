"""Frames with the names and dtypes of declared columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from peftbench.results.columns import Column


def typed_frame(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row each with these columns; a value that is absent, `None`, NaN or "" is `pd.NA`."""
    return pd.DataFrame(
        {
            column.name: pd.array(
                [
                    pd.NA if pd.isna(value := row.get(column.name)) or value == "" else value
                    for row in rows
                ],
                dtype=column.dtype,  # type: ignore[call-overload]  # one of four nullable dtypes
            )
            for column in columns
        }
    )
