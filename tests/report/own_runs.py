"""Facts of runs on one's own data sets."""

from __future__ import annotations

from typing import Any


def own_data(name: str, **fields: Any) -> dict[str, Any]:
    """Facts of a record about one's own folder of images."""
    data = {"reader": "folder", "root": f"/data/{name}", "content": f"{name}-" * 8, **fields}
    return {"dataset": "folder", "suite": "", "suite_version": 0, "data": data}
