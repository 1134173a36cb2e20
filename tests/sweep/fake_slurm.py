"""Slurm's commands as far as a sweep uses them; each array task is a process of this machine.

One script for all: called as sbatch, srun, squeue, sacct, scontrol or scancel. `FAKE_SLURM` is a
folder with, for each task that began, a process id in `<job>_<task>.pid`, its environment in
`.env`, and in `.state` what Slurm calls it where a test or a command says so; a command that
`<command>.absent` names does not answer.
"""

import json
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
        (HOME / f"{name}.env").write_text(json.dumps({"script": text, "extra": extra}))
        if "--partition=full" in text:
            (HOME / f"{name}.state").write_text("PENDING")
        else:
            start(name)
    print(f"Submitted batch job {job}")


def start(name: str) -> None:
    """Start a task, or start it again."""
    known = json.loads((HOME / f"{name}.env").read_text())
    script = HOME / f"{name}.sh"
    script.write_text(known["script"])
    process = subprocess.Popen(
        ["bash", str(script)],
        env=os.environ | known["extra"],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    (HOME / f"{name}.pid").write_text(str(process.pid))
    (HOME / f"{name}.state").unlink(missing_ok=True)


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


def state(name: str) -> str:
    told = HOME / f"{name}.state"
    if told.exists():
        return told.read_text()
    pid = (HOME / f"{name}.pid").read_text()
    running = Path(f"/proc/{pid}/stat")
    alive = running.exists() and running.read_text().rpartition(")")[2].split()[0] not in "ZX"
    return "RUNNING" if alive else "FAILED"


def squeue(*arguments: str) -> None:
    wanted = arguments[-1].removeprefix("--jobs=").split(",")
    known = [name for name in tasks() if name.partition("_")[0] in wanted]
    if not known:
        sys.exit("slurm_load_jobs error: Invalid job id specified")
    for name in known:
        print(f"{name}|{state(name)}")


def sacct(*arguments: str) -> None:
    for name in tasks():
        print(f"{name}|{state(name)}")
        print(f"{name}.batch|COMPLETED")


def scontrol(verb: str, name: str) -> None:
    assert verb == "requeue"
    (HOME / f"{name}.state").write_text("PENDING")
    end(name)


def scancel(*names: str) -> None:
    (HOME / "cancelled").write_text(" ".join(names))
    for name in names:
        if (HOME / f"{name}.env").exists():
            (HOME / f"{name}.state").write_text(f"CANCELLED by {os.getuid()}")
            end(name)


def end(name: str) -> None:
    """Every process of a task is asked, as Slurm does."""
    if (HOME / f"{name}.pid").exists():
        os.killpg(int((HOME / f"{name}.pid").read_text()), signal.SIGTERM)


def tasks() -> list[str]:
    return sorted(path.stem for path in HOME.glob("*.env"))


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    if (HOME / f"{command}.absent").exists():
        sys.exit(f"{command}: error: Unable to contact slurm controller (connect failure)")
    functions = (sbatch, start, srun, squeue, sacct, scontrol, scancel)
    {function.__name__: function for function in functions}[command](*rest)
