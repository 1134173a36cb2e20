"""Slurm's commands as far as submitit uses them; each array task is a process of this machine.

One script for all: called as sbatch, srun, sacct or scancel. `FAKE_SLURM` is a folder with a
process id `<job>_<task>.pid` for each task that began, and `.state` for each that was cancelled.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

HOME = Path(os.environ["FAKE_SLURM"])


def sbatch(script: str) -> None:
    text = Path(script).read_text()
    (HOME / "script.sh").write_text(text)
    if "--partition=missing" in text:
        sys.exit("sbatch: error: invalid partition specified: missing")
    job = 17 + len(list(HOME.glob("*.job")))
    (HOME / f"{job}.job").touch()
    array = re.search(r"--array='?0-(\d+)%", text)
    for task in range(int(array[1]) + 1) if array else [None]:
        name = f"{job}_{task}" if array else str(job)
        extra = {"SLURM_JOB_ID": str(job), "SLURM_STEP": name}
        if array:
            extra |= {"SLURM_ARRAY_JOB_ID": str(job), "SLURM_ARRAY_TASK_ID": str(task)}
        if "--partition=full" in text:
            continue  # it waits for ever
        process = subprocess.Popen(
            ["bash", script],
            env=os.environ | extra,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        (HOME / f"{name}.pid").write_text(str(process.pid))
    print(f"Submitted batch job {job}")


def srun(*arguments: str) -> None:
    output = arguments[arguments.index("--output") + 1]
    rest = arguments[arguments.index("--output") + 2 :]
    name = os.environ["SLURM_STEP"]
    job, _, task = name.partition("_")
    path = output.replace("%A", job).replace("%a", task).replace("%j", name).replace("%t", "0")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.execvp(rest[0], rest)


def sacct(*arguments: str) -> None:
    print("JobID|State|NodeList")
    for path in HOME.glob("*.pid"):
        running = Path(f"/proc/{path.read_text()}/stat")
        alive = running.exists() and running.read_text().rpartition(")")[2].split()[0] not in "ZX"
        print(f"{path.stem}|{'RUNNING' if alive else 'NODE_FAIL'}|here")


def scancel(*names: str) -> None:
    (HOME / "cancelled").write_text(" ".join(names))
    for name in names:
        if (HOME / f"{name}.pid").exists():  # every process of a task is asked, as Slurm does
            os.killpg(int((HOME / f"{name}.pid").read_text()), signal.SIGTERM)


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    {"sbatch": sbatch, "srun": srun, "sacct": sacct, "scancel": scancel}[command](*rest)
