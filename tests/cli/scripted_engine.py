"""A Docker engine that answers what a test told it to: enough of its API for one image to be made."""

import base64
import io
import json
import tarfile
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from multinode import wire

EXPIRED = "denied: Your authorization token has expired. Reauthenticate and try again."
IMMUTABLE = (
    "tag invalid: The image tag 'd1' already exists in the 'mn' repository and cannot be overwritten "
    "because the tag is immutable."
)
"""As ECR says them, through the engine."""
MADE = [
    {"stream": "Step 1/9 : FROM python\n"},
    {"stream": "== Checking the base image\n"},
    {"aux": {"ID": "sha256:made"}},
]


def scripted_order(registry=None):
    tag = f"{registry.repository}:d1" if registry else "multinode:d1"
    return wire.ImageOrder("d1", "linux/amd64", tag, {"multinode.installation": "i1"}, registry)


class ScriptedEngine:
    """``build`` and ``push`` are events (None: the connection breaks there), ``pull`` a status with a body."""

    def __init__(self):
        self.build = MADE
        self.push = [{"aux": {"Digest": "sha256:pushed"}}]
        self.pull = (200, {"status": "Pulled"})
        self.base_platform = ("linux", "amd64")
        self.labels = {"multinode.installation": "i1"}
        self.is_in_registry = False
        self.tags = {}
        """The digest of each tag that the registry has, beside those of ``is_in_registry``."""
        self.expired = set()
        """Keys of logins that the registry does not take any more; ``keys`` are those that it was asked with."""
        self.keys = []
        self.immutable_tags = set()
        self.registry_error = ""
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.api_version = "1.41"
        self.noted = {"python": "3.12.1", "packages": ["httpx==0.28.1"]}
        self.left = []
        """Containers that were made and not removed."""
        self.requests = []
        self.address = ""

    def queries(self, method, path):
        """The parsed queries of the requests to a path."""
        return [query for verb, where, query in self.requests if (verb, where) == (method, path)]

    def answer(self, method, path):
        """Status and body of an answer; a list is a stream of events."""
        if path == "/version":
            return 200, {
                "Version": "20.10.24",
                "ApiVersion": self.api_version,
                "Os": "linux",
                "Arch": "amd64",
            }
        if path == "/info":
            return 200, {"DockerRootDir": "/var/lib/docker"}
        if path.startswith("/images/python"):
            return self._base() if self.base_platform else (404, {"message": "No such image"})
        if path == "/images/create":
            return self.pull
        if path == "/build":
            return 200, self.build
        if path.startswith("/images/") and path.endswith("/push"):
            tag = self.requests[-1][2]["tag"][0]
            return 200, [{"error": IMMUTABLE}] if tag in self.immutable_tags else self.push
        if path.startswith("/images/"):
            digests = ["r.example/mn@sha256:pulled"]
            labels = {"Labels": self.labels}
            return 200, {"Id": "sha256:made", "Config": labels, "RepoDigests": digests}
        if path.startswith("/distribution/") and self.registry_error:
            self.may_answer.wait(20)
            return 500, {"message": self.registry_error}
        if path.startswith("/distribution/"):
            return self._distribution(path.split("/")[-2].rpartition(":")[2])
        return self._container(method, path)

    def _distribution(self, tag):
        digest = self.tags.get(tag) or ("sha256:pulled" if self.is_in_registry else "")
        if not digest:
            return 404, {"message": "manifest unknown"}
        return 200, {"Descriptor": {"digest": digest}}

    def _base(self):
        system, machine = self.base_platform
        body = {"Os": system, "Architecture": machine, "RepoDigests": ["python@sha256:base"]}
        return 200, {"Id": "sha256:0", **body}

    def _container(self, method, path):
        if path == "/containers/create":
            self.left.append("c1")
            return 201, {"Id": "c1"}
        if method == "DELETE":
            self.left.remove("c1")
            return 204, b""
        if self.noted is None:
            return 404, {"message": "no such file"}
        return 200, archive(json.dumps(self.noted).encode())


def archive(data):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo("environment.json")
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


@contextmanager
def running():
    """An engine that listens on loopback."""
    engine = ScriptedEngine()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(engine))
    engine.address = f"tcp://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield engine
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(engine):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def take(self):
            parts = urlsplit(self.path)
            path = parts.path
            if path.startswith("/v1."):
                path = "/" + path.split("/", 2)[2]
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            engine.requests.append((self.command, path, parse_qs(parts.query)))
            status, body = engine.answer(self.command, path)
            if self.expires(path):
                is_stream = not path.startswith("/distribution/")
                status, body = (200, [{"error": EXPIRED}]) if is_stream else (500, {"message": EXPIRED})  # fmt: skip
            if isinstance(body, list):
                self.stream(body)
                return
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Docker-Container-Path-Stat", "e30=")
            self.end_headers()
            self.wfile.write(body)

        def expires(self, path):
            """Whether the registry refuses the login that goes with this."""
            key = json.loads(base64.b64decode(self.headers.get("X-Registry-Auth") or "e30="))
            key = key.get("password", "")
            if key:
                engine.keys.append(key)
            return key in engine.expired

        def stream(self, events):
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for event in events:
                if event is None:
                    self.close_connection = True
                    return
                data = json.dumps(event).encode() + b"\r\n"
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *_):
            pass

        do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = take

    return Handler
