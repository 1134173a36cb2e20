"""What a user waits for around the training: processor seconds, peak memory, and counts.

python benchmarks/around.py [--only NAME ...] [--large] [--repeats 3]

Each row is a command in a process of its own; `cpu_seconds` are those of it and its children, which
other programs on the machine lengthen less than the time on the clock, and the least of `--repeats`
where the command is short. `counts` come from the same command once more, in a process that counts:
compositions by Hydra, records read, barriers (fsync and syncfs), models whose latency is measured.
`loop_seconds` is a loop of 10 million additions, for machines whose speed changes within the hour.
`--large` adds 15,000 records. Prints JSON and, when all rows were measured, writes
`results/benchmarks/around_cpu.json`. Records are made up (see `large_results.py`); runs are real.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import large_results

from peftbench.results.store import ResultsStore

OUTPUT = Path(__file__).resolve().parents[1] / "results" / "benchmarks" / "around_cpu.json"
PEFTBENCH = (sys.executable, "-m", "peftbench")
SETS = 24
TINY = (
    *("method=linear", "dataset=mini/digits", "recipe.epochs=1", "recipe.warmup_epochs=0"),
    *("threads=1", "device=cpu", "precision=float32"),
)
# the first 20 methods x 24 data sets x 3 seeds, of which this machine needs no file
TWENTY = (
    "adapter,adapter_plus,adapter_vpt,adaptformer,bias,convpass,fact_tk,fact_tt,full,linear,lora,"
    "mlp,norm,partial,repadapter,sidetune,ssf,vpt_deep,vpt_pad,vpt_shallow"
)
GRID = (
    *("plan", "-m", "experiments=peftbench_vtab", f"method={TWENTY}"),
    "dataset=glob([vtab/*,fgvc/*])",
)
FRAME = "import peftbench; print(len(peftbench.results({folder!r})))"
# runs a command of peftbench, or a line of Python, and prints what it did how often
COUNTING = """
import collections, contextlib, json, os, sys
counts = collections.Counter(compositions=0, records_read=0, barriers=0, latencies=0)
def heard(event, details):
    if event == "open" and isinstance(details[0], (str, os.PathLike)):
        path = os.fsdecode(details[0])
        counts["records_read"] += "/runs/" in path and path.endswith(".json") and (
            details[1] in (None, "r", "rb") and not (details[2] or 0) & (os.O_WRONLY | os.O_RDWR))
sys.addaudithook(heard)
def counted(owner, name, what):
    original = getattr(owner, name)
    def call(*args, **options):
        counts[what] += 1
        return original(*args, **options)
    setattr(owner, name, call)
counted(os, "fsync", "barriers")
from peftbench.results import barrier
together = barrier._sync_all_at
def synchronised(path):
    done = together(path)
    counts["barriers"] += done
    return done
barrier._sync_all_at = synchronised
from hydra._internal.config_loader_impl import ConfigLoaderImpl
counted(ConfigLoaderImpl, "load_configuration", "compositions")
kind, *arguments = sys.argv[1:]
if kind == "run":
    from peftbench.run import latency
    counted(latency, "measure", "latencies")
with contextlib.redirect_stdout(sys.stderr):
    if kind == "python":
        exec(arguments[0])
    else:
        from peftbench.cli.main import main
        with contextlib.suppress(SystemExit):
            main(arguments)
print(json.dumps(counts))
"""


@dataclass(frozen=True)
class Row:
    """A command that is measured, and what it should take."""

    name: str
    command: tuple[str, ...]  # of peftbench; or "python" and a line
    goal: float  # processor seconds
    short: bool = True  # whether it is measured several times
    ends_well: bool = True
    goal_mib: float | None = None
    counted: tuple[str, ...] | None = None  # the command again, for the counts; `()`: none
    cold: bool = False  # whether the caches of the user are empty

    @property
    def argv(self) -> list[str]:
        if self.command[0] == "python":
            return [sys.executable, "-c", self.command[1]]
        return [*PEFTBENCH, *self.command]

    @property
    def counting(self) -> list[str]:
        command = self.command if self.counted is None else self.counted
        kind = command[0] if command[0] in ("python", "run") else "other"
        arguments = command[1:] if kind == "python" else command
        return [sys.executable, "-c", COUNTING, kind, *arguments]


def write_records(folder: Path, methods: int, seeds: int, predictions: bool) -> None:
    """Records of 24 data sets x `methods` x `seeds`, of 100 epochs each, as a store writes them."""
    groups = [g for g, size in large_results.GROUPS.items() for _ in range(size)]
    store, draw = ResultsStore(folder), np.random.default_rng(0)
    for seed, dataset, method in itertools.product(range(seeds), range(SETS), range(methods)):
        record = large_results.simulated(0, seed, dataset, groups[dataset], method, 100)
        name = f"method{method:02}"
        path = folder / "runs" / name / f"{record.run_id}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(record.to_json(), encoding="utf-8")
        if predictions:
            labels = np.random.default_rng(dataset).integers(0, 10, 1000)
            right = draw.random(1000) < (record.metrics["test/top1"] or 0.0)
            confidence = np.clip(draw.normal(0.7, 0.2, 1000), 0.1, 1)
            store.save_predictions(
                name,
                record.run_id,
                record.task,
                classes=np.where(right, labels, (labels + 1) % 10),
                confidence=confidence,
                margin=confidence / 2,
                labels=labels,
            )


def rows(work: Path, large: bool) -> Iterator[Row]:
    """What is measured, in this order: later rows find what earlier ones left."""
    yield Row("help", ("--help",), 1.0)
    for group in ("methods", "datasets", "backbones", "experiments", "protocols", "runs"):
        yield Row(f"list {group}", ("list", group), 1.0)
    yield Row("a method that is misspelt", ("run", "method=lorra"), 1.0, ends_well=False)
    yield Row("a key that is misspelt", ("run", "recipe.lrr=1"), 1.0, ends_well=False)
    yield Row("plan of 1 job", ("plan", "method=lora"), 1.0)
    yield Row("plan of 1,440 jobs", GRID, 10.0, short=False, goal_mib=300)
    several = str(work / "r1440")
    report = ("report", "--results-dir", several)
    yield Row("report of 1,440 records", report, 15.0, short=False, counted=())
    yield Row("results() of 1,440 records", ("python", FRAME.format(folder=several)), 2.0)
    bundle = str(work / "all.zip")
    export = ("export-results", "--out", bundle, "--results-dir", several)
    yield Row("export of 1,440 records", export, 5.0, short=False, counted=())
    bring = ("import-results", bundle, "--results-dir")
    imported, again = ((*bring, str(work / name)) for name in ("imported", "again"))
    yield Row("import of 1,440 records", imported, 5.0, short=False, counted=again)
    many = str(work / "r14400")
    frame = ("python", FRAME.format(folder=many))
    yield Row("results() of 14,400 records, none known", frame, 8.0, short=False, cold=True)
    yield Row("results() of 14,400 records", frame, 3.0)
    yield Row("advise at 14,400 records", ("advise", "--results-dir", many), 5.0, goal_mib=500)
    if large:
        report = ("report", "--results-dir", str(work / "r15000"))
        yield Row("report of 15,000 records", report, 60.0, short=False, counted=())
    results = f"results_dir={work / 'tiny'}"
    first, second, done = (("run", *TINY, f"seed={seed}", results) for seed in (0, 1, 0))
    yield Row("a run, the first of its network", first, 8.0, short=False, counted=())
    third = ("run", *TINY, "seed=2", results)
    yield Row("a run, the second of its network", second, 6.0, short=False, counted=third)
    yield Row("a run that is done", done, 2.0)
    sweep = ("run", "-m", *TINY, "seed=range(10,18)", results)
    yield Row("a sweep of 8 tiny jobs", sweep, 20.0, short=False, counted=())


def environment(work: Path, cache: str) -> dict[str, str]:
    """Of a command whose user has no data, and caches in a folder of that name."""
    own = {"PEFTBENCH_DATA": str(work / "no-data"), "PEFTBENCH_CACHE": str(work / cache)}
    return {**os.environ, **own, "OMP_NUM_THREADS": "1"}


def loop_seconds() -> float:
    """Processor seconds of ten million additions: how fast the machine is just now."""
    began, total = time.process_time(), 0
    for i in range(10_000_000):
        total += i * i
    return round(time.process_time() - began, 2)


def measured(row: Row, work: Path, repeats: int) -> dict[str, Any]:
    """The row with what it took."""
    took: list[dict[str, float]] = []
    for _ in range(repeats if row.short else 1):
        began = time.perf_counter()
        with (work / "output").open("w") as output:
            process = subprocess.Popen(
                row.argv,
                cwd=work / "cwd",
                env=environment(work, "cache"),
                stdout=output,
                stderr=output,
            )
            _, status, usage = os.wait4(process.pid, 0)
        if row.ends_well != (os.waitstatus_to_exitcode(status) == 0):
            raise SystemExit(f"{row.name}: {(work / 'output').read_text()[-2000:]}")
        took.append(
            {
                "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
                "seconds": round(time.perf_counter() - began, 2),
                "peak_mib": round(usage.ru_maxrss / 1024),
            }
        )
    best = min(took, key=lambda each: each["cpu_seconds"])
    goals = {"goal_cpu_seconds": row.goal, "goal_mib": row.goal_mib}
    return {"name": row.name, **best, **goals, "loop_seconds": loop_seconds()}


def counts(row: Row, work: Path) -> dict[str, int]:
    """What the command does how often; where it is repeated, as the last time."""
    done = subprocess.run(
        row.counting,
        cwd=work / "cwd",
        env=environment(work, "another-cache" if row.cold else "cache"),
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure each row and print all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", help="names of rows; others are still run if needed")
    parser.add_argument("--large", action="store_true", help="15,000 records as well")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # as it is where it was installed
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        (work / "cwd").mkdir()
        write_records(work / "r1440", 20, 3, predictions=True)
        write_records(work / "r14400", 20, 30, predictions=False)
        if options.large:
            large_results.write(work / "r15000", 15_000, 100)
        found = []
        for row in rows(work, options.large):
            if options.only and row.name not in options.only:
                continue
            found.append(measured(row, work, options.repeats))
            if row.counted != ():
                found[-1]["counts"] = counts(row, work)
            print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    text = json.dumps({"rows": found, "python": platform.python_version(), "cpu": _cpu()}, indent=1)
    print(text)
    if not options.only:
        OUTPUT.write_text(text + "\n", encoding="utf-8")


def _cpu() -> str:
    import torch

    from peftbench.run.cost import device_name

    return device_name(torch.device("cpu"))


if __name__ == "__main__":
    main()
