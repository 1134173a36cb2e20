"""Processes that run a stand-in for the package: they start at once and leave notes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import peftbench
from peftbench.sweep.queues.pool import Command

# a stand-in for the package, so that a server starts at once and jobs do what a test says
FAKE_CLI = """
import json, os, signal, sys, time

def main(arguments):
    verb, *rest = arguments
    name = rest[-1] if verb == "run" else rest[0]
    folder = os.environ.get("POOL_TEST") or os.path.join("..", "notes")  # on a cluster
    note = dict(argv=arguments, pid=os.getpid(), began=time.monotonic(),
                gpu=os.environ.get("CUDA_VISIBLE_DEVICES"), slot=os.environ["PEFTBENCH_SLOT"],
                submission=os.environ.get("PEFTBENCH_SUBMISSION"),
                threads=os.environ["OMP_NUM_THREADS"], torch="torch" in sys.modules)
    if verb == "stop":
        told = os.path.join(folder, name + ".told")
        signal.signal(signal.SIGTERM, lambda *_: (open(told, "w").close(), sys.exit(130)))
    if verb == "run":
        time.sleep(0.2)
    if verb in ("sleep", "stop"):
        open(os.path.join(folder, name + ".begun"), "w").close()
        time.sleep(float(rest[1]))
    if verb == "die":
        os.kill(os.getpid(), 9)
    note["ended"] = time.monotonic()
    with open(os.path.join(folder, name + ".json"), "w") as file:
        json.dump(note, file)
    print("said", name)
    sys.exit(3 if verb == "fail" else 0)
"""


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Servers that run `FAKE_CLI`; the folder where each job leaves a note."""
    package = tmp_path / "fake" / "peftbench"
    package.mkdir(parents=True)
    real = Path(peftbench.__file__).parent
    for name in ("", "config", "cli"):
        (package / name).mkdir(exist_ok=True)
        (package / name / "__init__.py").write_text("")
    # what a server loads before its jobs
    (package / "cli" / "libraries.py").write_text("def warm_up(): ...\n")
    (package / "cli" / "main.py").write_text(FAKE_CLI)
    kept = (
        "_version.py",
        "canonical.py",
        "errors.py",
        "registry.py",
        "untrusted.py",
        "waiting.py",
        "results",
        "spec",
        "sweep",
        "tasks",
        "training",
        "cli/server.py",
        "config/limits.py",
    )
    for name in kept:
        (package / name).symlink_to(real / name)
    notes = tmp_path / "notes"
    notes.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))
    monkeypatch.setenv("POOL_TEST", str(notes))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.chdir(tmp_path / "fake")  # `python -m` looks here first
    yield notes


def command(name: str, *arguments: str, folder: Path) -> Command[str]:
    verb, *rest = arguments or ("do",)
    return Command(name, (verb, name, *rest), folder / f"{name}.txt")


def notes(folder: Path) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
