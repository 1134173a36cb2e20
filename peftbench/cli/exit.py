"""Exit statuses of every command."""

from __future__ import annotations

OK, FAILED, USAGE, UNSUPPORTED, INTERRUPTED = 0, 1, 2, 3, 130
NOTHING = 3  # of `reproduce`: no cell could be judged
