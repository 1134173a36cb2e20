"""A W&B server on the loopback interface that remembers runs and artifacts."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class RemoteRun:
    """What the server knows of one run."""

    fields: dict[str, Any]
    history: dict[int, dict[str, Any]] = field(default_factory=dict)  # by line
    summary: dict[str, Any] = field(default_factory=dict)
    exit_codes: list[int] = field(default_factory=list)
    resumed: int = 0  # how often a client asked for it when it was there already


@dataclass
class Server:
    """Runs by id, and files of artifacts by the name of their artifact."""

    url: str
    runs: dict[str, RemoteRun] = field(default_factory=dict)
    artifacts: dict[str, set[str]] = field(default_factory=dict)
    requests: int = 0

    def answer(self, path: str, body: bytes) -> Any:
        self.requests += 1
        if path.endswith("/file_stream"):
            return self.stream(path.split("/")[-2], json.loads(body))
        if path != "/graphql":
            return {}
        question = json.loads(body)
        found = re.search(r"(?:query|mutation) (\w+)", question["query"])
        assert found is not None
        reply = getattr(self, found.group(1), lambda **variables: {})
        return {"data": reply(**(question.get("variables") or {}))}

    def stream(self, run_id: str, told: dict[str, Any]) -> Any:
        run = self.runs[run_id]
        for name, chunk in told.get("files", {}).items():
            lines = [json.loads(line) for line in chunk["content"]]
            if name == "wandb-history.jsonl":
                run.history |= {chunk["offset"] + i: line for i, line in enumerate(lines)}
            elif name == "wandb-summary.json":
                run.summary = lines[-1]
        if told.get("complete"):
            run.exit_codes.append(told["exitcode"])
        return {}

    def RunResumeStatus(self, name: str, **_: Any) -> Any:
        run = self.runs.get(name)
        if run is None:
            return {"model": None}
        run.resumed += 1
        bucket = {
            "id": f"id-{name}",
            "name": name,
            "displayName": run.fields["displayName"],
            "summaryMetrics": json.dumps(run.summary),
            "config": run.fields["config"],
            "historyTail": json.dumps([json.dumps(run.history[max(run.history)])])
            if run.history
            else "[]",
            "eventsTail": "[]",
            "historyLineCount": len(run.history),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "tags": run.fields["tags"],
            "notes": None,
            "wandbConfig": '{"t": 1}',
        }
        return {
            "model": {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}
            | {"bucket": bucket}
        }

    def UpsertBucket(self, name: str, **told: Any) -> Any:
        given = {key: value for key, value in told.items() if value is not None}
        fresh = name not in self.runs
        run = self.runs.setdefault(
            name, RemoteRun({"tags": [], "config": "{}", "displayName": name})
        )
        run.fields |= given
        project = {"id": "p", "name": "peftbench", "entity": {"id": "e", "name": "team"}}
        bucket = {"id": f"id-{name}", "name": name, "displayName": name, "project": project}
        return {"upsertBucket": {"bucket": bucket, "inserted": fresh}}

    def Viewer(self) -> Any:
        person = {"id": "1", "entity": "team", "username": "me", "email": "", "flags": "{}"}
        return {"viewer": person | {"teams": {"edges": []}}}

    def ArtifactType(self, **_: Any) -> Any:
        return {"project": {"artifact": None}}

    def CreateRunFiles(self, files: list[str], **_: Any) -> Any:
        made = [{"name": name, "uploadUrl": f"{self.url}/upload"} for name in files]
        return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": made}}

    def CreateArtifact(self, input: dict[str, Any]) -> Any:
        name = input["artifactCollectionName"]
        self.artifacts.setdefault(name, set())
        artifact = {"id": name, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": artifact}}

    def CreateArtifactManifest(self, artifactID: str, **_: Any) -> Any:
        file = {"id": "f", "uploadUrl": f"{self.url}/upload", "uploadHeaders": []}
        manifest = {"id": artifactID, "file": file}
        return {"createArtifactManifest": {"artifactManifest": manifest}}

    def UpdateArtifactManifest(self, **_: Any) -> Any:
        manifest = self.CreateArtifactManifest("m")["createArtifactManifest"]
        return {"updateArtifactManifest": manifest}

    def CreateArtifactFiles(self, input: dict[str, Any]) -> Any:
        nodes = []
        for file in input["artifactFiles"]:
            self.artifacts[file["artifactID"]].add(file["name"])
            node = {"storagePath": file["name"], "uploadUrl": f"{self.url}/upload"}
            more = {"uploadHeaders": [], "uploadMultipartUrls": None}
            nodes.append({"node": node | more | {"artifact": {"id": file["artifactID"]}}})
        return {"createArtifactFiles": {"files": {"edges": nodes}}}

    def ArtifactByID(self, id: str) -> Any:
        about = {"digest": "d", "digestAlgorithm": None, "commitHash": None, "state": "COMMITTED"}
        texts = {"description": None, "metadata": None, "updatedAt": None, "historyStep": None}
        times = {"ttlDurationSeconds": -1, "ttlIsInherited": True, "createdAt": "2025-01-01"}
        counts = {"size": 1, "fileCount": 1, "versionIndex": 0, "tags": [], "aliases": []}
        place = {"artifactSequence": {"name": id, "project": None}}
        artifact = {"id": id, "artifactType": {"name": "report"}} | about | texts | times | counts
        return {"artifact": artifact | place}

    def CommitArtifact(self, **_: Any) -> Any:
        return {"commitArtifact": {"artifact": {"id": "a", "digest": "d"}}}


@contextmanager
def serving() -> Iterator[Server]:
    """A server that listens on a free port while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with lock:
                text = json.dumps(server.answer(self.path, body)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = handle_any

        def log_message(self, *_: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            pass  # a client that is killed drops its connections

    lock = threading.Lock()
    with Quiet(("127.0.0.1", 0), Handler) as http:
        server = Server(f"http://127.0.0.1:{http.server_port}")
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield server
        http.shutdown()
        thread.join()
