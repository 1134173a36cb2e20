"""GPU hours of the experiments: trials and final runs together, and final runs (tuner=none) alone.

python tools/estimate_hours.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from peftbench.sweep import experiments, hours

if __name__ == "__main__":
    known = hours.Known.now()
    for path, sweep in experiments.every().items():
        if sweep.card.gpu_hours:
            continue
        both, alone = hours.hours(sweep, known)
        print(f"{path.stem:20} {hours.rounded(both):>8} {hours.rounded(alone):>8}")
