"""Exit statuses of every command."""

from __future__ import annotations

OK, FAILED, USAGE, UNSUPPORTED = 0, 1, 2, 3
# 130 after Ctrl-C, 143 after SIGTERM: see `peftbench.stopping`
NOTHING = 3  # of `reproduce`: no cell could be judged
