"""The process beside a run that holds the W&B client: takes lines of JSON, answers in kind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

PROBE_SECONDS = 5.0  # for the server to say anything at all
ORPHAN_SECONDS = 20  # for the end of a run whose process is gone
NOBODY = "not told"


class Session:
    """One W&B run at a time."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.run: Any = None
        self.note = ""  # why the run is not where it was meant to go
        self.failure = ""

    def start(self, init: dict[str, Any], mode: str, timeout: float, fall_back: bool) -> None:
        """Begin a run; how that went is told by the answer to `finish`."""
        self.run, self.note, self.failure = None, "", ""
        try:
            if mode == "online":
                _probe()
            self.run = self._init(init, mode, timeout)
        except Exception as e:
            if mode != "online" or not fall_back:
                self.failure = _line(e)
                return
            self.note = _line(e)
            self.run = self._init(init, "offline", timeout)

    def log(self, row: dict[str, Any], step: int) -> None:
        """Note an epoch. Steps that a resumed run already has are left alone by W&B."""
        if self.run is not None:
            self.run.log(row, step=step)

    def finish(
        self, summary: dict[str, Any], tags: Sequence[str], exit_code: int
    ) -> dict[str, str]:
        """End the run; the answer holds a note when it was not uploaded as asked."""
        if self.run is None:
            raise RuntimeError(self.failure or "no run was started")
        self.run.summary.update(summary)
        self.run.tags = tuple(tags)
        run, self.run = self.run, None
        run.finish(exit_code=exit_code)
        return {"note": self.note}

    def report(self, name: str, files: dict[str, str], **start: Any) -> dict[str, str]:
        """A run of its own that holds files as one artifact, whose version changes with them."""
        import wandb

        self.start(**start)
        if self.run is None:
            raise RuntimeError(self.failure)
        artifact = wandb.Artifact(name, type="report")
        for inside, path in files.items():
            artifact.add_file(path, name=inside)
        run, self.run = self.run, None
        exit_code = 1
        try:
            logged = run.log_artifact(artifact)
            if start["mode"] == "online":
                logged.wait(timeout=int(start["timeout"]))  # raises what the upload ran into
            exit_code = 0
        finally:
            run.finish(exit_code=exit_code)
        return {"note": self.note}

    def abandon(self) -> None:
        """End a run that nobody will finish: the process that trained is gone."""
        if self.run is not None:
            signal.alarm(ORPHAN_SECONDS)
            self.run.finish(exit_code=1)

    def _init(self, init: dict[str, Any], mode: Any, timeout: float) -> Any:
        import wandb

        quiet = wandb.Settings(
            silent=True,
            reinit="finish_previous",
            console="off",
            # of this process and not of the one that trains, whose record holds all of it
            x_disable_stats=True,
            x_disable_meta=True,
            x_save_requirements=False,
            disable_git=True,
            save_code=False,
            # the client would take the names of this machine and of who is logged in
            host=NOBODY,
            username=NOBODY,
            email=NOBODY,
            init_timeout=timeout,
            finish_timeout=0.75 * timeout,  # what is left is on disk
            finish_timeout_raises=True,
        )
        return wandb.init(dir=self.root, mode=mode, settings=quiet, **init)


def main() -> None:
    """Serve until there is nothing more to read."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not look like an answer
    with contextlib.suppress(OSError):
        os.nice(5)  # the run comes first
    session = Session(sys.argv[1])
    for line in sys.stdin:
        message = json.loads(line)
        try:
            answer = getattr(session, message.pop("call"))(**message)
        except Exception as e:
            answer = {"error": _line(e)}
        if answer is not None:
            print(json.dumps(answer), file=answers, flush=True)
    session.abandon()


def _probe() -> None:
    """Raise `OSError` unless the server answers anything: the client would try for minutes."""
    import wandb

    url = wandb.setup().settings.base_url
    try:
        with urllib.request.urlopen(url, timeout=PROBE_SECONDS):
            pass
    except urllib.error.HTTPError:
        pass  # an answer
    except OSError as e:
        raise OSError(f"{url} cannot be reached ({getattr(e, 'reason', e)}).") from e


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    main()
