"""A fake model server: a process that keeps the model server's contract and makes up its tokens.

How it behaves is said by the file `behaviour.json` of the version that it serves:
  start_s, load_s, warm_s    how long it takes to bind its port, to load and to warm up
  token_s, tokens            between two tokens, and how many an answer has
  exit, says                 ends while loading with this exit code, after writing this line
  refuses_adapters           answers 500 to /admin/adapters
  stubborn                   ignores SIGTERM
  holds_mib                  memory that it takes while loading
`POST /fake/wedge` makes its engine stand still behind an open port. `POST /fake/hold` takes so many `mib` of
memory more; `mapped`: as pages of a file. A request with `breaks` gets no answer but a closed connection: itself
(`this`), or the one that comes behind it on its connection (`next`).
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Engine:
    def __init__(self, config: dict) -> None:
        self.config = config
        self.phase, self.phases = "pulling", {}
        self.versions = [config["version"]]
        self.is_wedged = False
        self.last_token: float | None = None
        self.running = self.requests = self.tokens = self.broken = 0
        self.held: list[bytes | mmap.mmap] = []
        self.behaviour = self.read(config["files_folder"], config["files"])

    def read(self, folder: str, files: list[dict]) -> dict:
        for file in files:
            data = (Path(folder) / file["path"]).read_bytes()
            if hashlib.sha256(data).hexdigest() != file["digest"]:
                sys.stderr.write(f"ERROR {file['path']} is corrupt\n")
                sys.stderr.flush()
                os._exit(3)
        behaviour = Path(folder) / "behaviour.json"
        return json.loads(behaviour.read_text()) if behaviour.exists() else {}

    def load(self) -> None:
        for phase in ("pulling", "loading", "warming"):
            self.phase, began = phase, time.monotonic()
            time.sleep(self.behaviour.get({"loading": "load_s", "warming": "warm_s"}.get(phase, ""), 0))
            self.phases[phase] = time.monotonic() - began
            if phase == "loading":
                self.hold(self.behaviour.get("holds_mib", 0))
            if phase == "loading" and "exit" in self.behaviour:
                sys.stderr.write(self.behaviour.get("says", "") + "\n")
                sys.stderr.flush()
                os._exit(self.behaviour["exit"])
        self.last_token, self.phase = time.time(), "ready"
        sys.stderr.write("INFO ready\n")
        sys.stderr.flush()

    def hold(self, mib: int, *, mapped: bool = False) -> None:
        if not mapped:
            self.held.append(b"x" * (mib << 20))
            return
        # As often as it takes: a file of the tests' own could lie in memory.
        with Path(sys.executable).open("rb") as file:
            for _ in range(-(-(mib << 20) // os.fstat(file.fileno()).st_size)):
                pages = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
                sum(pages[:: mmap.PAGESIZE])
                self.held.append(pages)

    def health(self) -> tuple[int, dict]:
        told = {
            "phase": self.phase,
            "phases": self.phases,
            "last_token_time": self.last_token,
            "loaded_versions": self.versions,
            "reason": "the engine stands still" if self.is_wedged else "",
        }
        return 503 if self.is_wedged else 200, told


class Handler(BaseHTTPRequestHandler):
    engine: Engine
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16
    disable_nagle_algorithm = True
    breaks_next = False

    def do_GET(self) -> None:
        engine = self.engine
        if self.path == "/health/live":
            self.answer(*engine.health())
        elif self.path == "/metrics":
            text = (
                f"neuroweaver_serving_tokens_total {engine.tokens}\n"
                f"neuroweaver_serving_requests_running {engine.running}\n"
                "neuroweaver_serving_requests_waiting 0\n"
            )
            self.answer(200, text)
        elif self.path == "/v1/models":
            self.answer(
                200,
                {
                    "data": [{"id": f"{engine.config['model']}@{engine.config['version']}"}],
                    "pid": os.getpid(),
                    "broken": engine.broken,
                },
            )
        else:
            self.answer(404, {"error": {"message": self.path}})

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}"
        try:
            body = json.loads(content)
        except (ValueError, RecursionError):
            self.answer(400, {"error": {"message": "no JSON"}})
            return
        engine = self.engine
        if self.breaks_next or body.get("breaks") == "this":
            self.close_connection = True
            engine.broken += 1
            return
        self.breaks_next = body.get("breaks") == "next"
        if self.path == "/fake/wedge":
            engine.is_wedged = True
            self.answer(200, {})
        elif self.path == "/fake/hold":
            if body.get("mapped"):
                engine.hold(**body)
                self.answer(200, {})
            else:
                # First, since it may be ended for it at any moment.
                self.answer(200, {})
                self.wfile.flush()
                engine.hold(**body)
        elif self.path == "/admin/adapters":
            if engine.behaviour.get("refuses_adapters"):
                self.answer(500, {})
                return
            engine.behaviour = engine.read(body["files_folder"], body["files"]) | {"refuses_adapters": False}
            engine.versions = [*engine.versions, body["version"]]
            self.answer(200, {})
        elif self.path == "/v1/chat/completions":
            self.complete(body)
        else:
            self.answer(404, {"error": {"message": self.path}})

    def do_DELETE(self) -> None:
        version = self.path.rpartition("/")[2]
        self.engine.versions = [each for each in self.engine.versions if each != version]
        self.answer(200, {})

    def complete(self, body: dict) -> None:
        engine = self.engine
        if engine.phase != "ready":
            self.answer(503, {"error": {"message": "draining"}})
            return
        if status := engine.behaviour.get("status"):
            self.answer(status, {"error": {"message": "as told"}})
            return
        engine.running += 1
        try:
            if body.get("stream"):
                self.stream(body)
            else:
                self.make_tokens()
                self.answer(
                    200, {"model": body.get("model"), "version": engine.versions[-1], "pid": os.getpid()}
                )
        finally:
            engine.running -= 1

    def make_tokens(self):
        engine = self.engine
        for _ in range(engine.behaviour.get("tokens", 1)):
            time.sleep(engine.behaviour.get("token_s", 0))
            engine.tokens, engine.last_token = engine.tokens + 1, time.time()

    def stream(self, body: dict) -> None:
        engine = self.engine
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for number in range(engine.behaviour.get("tokens", 1)):
            time.sleep(engine.behaviour.get("token_s", 0))
            engine.tokens, engine.last_token = engine.tokens + 1, time.time()
            self.chunk(f"data: {number}\n\n".encode())
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def answer(self, status: int, body: dict | str) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json" if isinstance(body, dict) else "text/plain")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def main() -> None:
    config = json.loads(Path(sys.argv[sys.argv.index("--config") + 1]).read_text())
    engine = Engine(config)
    Handler.engine = engine
    time.sleep(engine.behaviour.get("start_s", 0))
    server = Server((config["host"], config["port"]), Handler)

    def drain(*_) -> None:
        if engine.behaviour.get("stubborn"):
            return
        engine.phase = "draining"

        def leave() -> None:
            while engine.running:
                time.sleep(0.01)
            os._exit(0)

        threading.Thread(target=leave).start()

    signal.signal(signal.SIGTERM, drain)
    threading.Thread(target=engine.load, daemon=True).start()
    server.serve_forever()


if __name__ == "__main__":
    main()
