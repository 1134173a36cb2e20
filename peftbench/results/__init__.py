"""Records of runs and the table derived from them; imports neither torch nor timm.

`peftbench.results(...)` is `peftbench.results.frame.load(...)`: the name is both the package and
the question that users ask it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


class _Results(ModuleType):
    """This package, which can be called."""

    def __call__(
        self, source: Path | str = "results", *, where: str | Sequence[str] = ()
    ) -> pd.DataFrame:
        """One row a run; see `peftbench.results.frame.load`."""
        from peftbench.results.frame import load

        return load(source, where=where)


sys.modules[__name__].__class__ = _Results
