"""What every test runs under: no network, no display, no tracking, one thread for each worker."""

from __future__ import annotations

import os

# read when the libraries are imported, so set before any test module is
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ["MPLBACKEND"] = "Agg"
if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores; more threads only wait
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"

pytest_plugins = ["fake_jobs"]
