"""A control plane in memory that speaks the callers' routes, for the SDK's tests. Runs on Python 3.8.

    with CallersPlane() as plane:
        plane.deploy("shop", Multinode-object)
        plane.misbehave(reset, status(503))      # the next two requests
        client = plane.client()

An invocation of a deployed function runs in the request that starts it, unless ``plane.is_holding``: then ``plane.run(id)`` does.
"""

import itertools
import json
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit

from multinode import codec, errors, wire
from multinode.client import Client

NOW = "2026-11-24T12:00:00.000+00:00"
ENVIRONMENT = wire.EnvironmentInfo("env", "3.12", "3.12.1", [], [], NOW)


class CallersPlane:
    """Remembers every request in ``requests``: ``(method, path, query, body)``."""

    def __init__(self):
        self.requests = []
        self.connections = 0
        self.is_holding = False
        self.invocations = {}
        self.inputs = {}
        self.values = {}
        self.options = []
        self._apps = {}
        self._latest = {}
        self._misbehaviours = []
        self._keys = {}
        self._ids = itertools.count(1)
        self._changed = threading.Condition()

    def __enter__(self):
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.plane = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        return self

    def __exit__(self, *_):
        with self._changed:
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()

    # --- what tests do ---

    def client(self, retry_s=5.0, key="key"):
        return Client(self.url, key, retry_s=retry_s)

    def misbehave(self, *ways):
        """What happens to the next requests, one after another: functions that are given the handler."""
        self._misbehaviours.extend(ways)

    def deploy(self, project, app, version_id="ver-1"):
        self._apps[project, version_id] = app
        self._latest[project] = version_id

    def run(self, invocation_id):
        """Runs an invocation that is held."""
        with self._changed:
            info = self.invocations[invocation_id]
            func = self._apps[info.project, info.version_id].functions[info.function].func
            args, kwargs = codec.decode(self.inputs[invocation_id])
            try:
                returned = func(*args, **kwargs)
                if hasattr(returned, "throw"):
                    texts = [codec.encode_output(value) for value in returned]
                    self.values[invocation_id] = texts
                    result = texts[-1] if texts else "null"
                else:
                    result = codec.encode_output(returned)
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
                failure = wire.FunctionError(said, type(error).__name__, traceback.format_exc())
                self.end(invocation_id, wire.FAILED, error=failure)
            else:
                self.end(invocation_id, wire.SUCCEEDED, result=result)

    def end(self, invocation_id, status, **fields):
        with self._changed:
            info = self.invocations[invocation_id]
            self.invocations[invocation_id] = info.replace(
                status=status, finished_at=NOW, terminated=True, revision=9, **fields
            )
            self._changed.notify_all()

    # --- routes ---

    def answer(self, method, path, query, body):
        parts = path.split("/")[2:]
        with self._changed:
            if parts[0] == "projects" and parts[2] == "versions":
                return self._version(parts[1], parts[3])
            if parts[0] == "projects":
                return self._start(parts[1], parts[3], wire.loads(wire.StartRequest, body))
            if parts == ["invocations"]:
                return self._page(query)
            if parts == ["invocations", "wait"]:
                return self._wait(wire.loads(wire.WaitRequest, body))
            if parts[1] not in self.invocations:
                message = f"There is no invocation {parts[1]!r}."
                raise errors.InvocationNotFound(message)
            is_pending = self.invocations[parts[1]].status == wire.PENDING
            if parts[2:] == ["cancel"] and is_pending:
                self.end(parts[1], wire.CANCELLED)
            if parts[2:] == ["values"]:
                return self._values(parts[1], int(query["after"]))
            return self.invocations[parts[1]]

    def _version(self, project, version_id):
        if project not in self._latest:
            message = f"There is no project {project!r}."
            raise errors.ProjectNotFound(message)
        version_id = self._latest[project] if version_id == "latest" else version_id
        if (project, version_id) not in self._apps:
            message = f"There is no version {version_id!r}."
            raise errors.VersionNotFound(message)
        functions = [item.describe() for item in self._apps[project, version_id].functions.values()]
        return wire.VersionInfo(
            project, version_id, 1, NOW, True, "bundle", ENVIRONMENT, [], functions
        )

    def _start(self, project, function, request):
        self.options.append(request)
        key = request.request_key
        if key not in self._keys:
            self._keys[key] = [
                self._create(project, function, request, text) for text in request.inputs
            ]
        return wire.StartAnswer(self._keys[key])

    def _create(self, project, function, request, text):
        name = f"inv-{next(self._ids)}"
        version_id = request.version_id or self._latest[project]
        self.inputs[name], self.values[name] = text, []
        self.invocations[name] = wire.InvocationInfo(
            name,
            project,
            function,
            version_id,
            wire.PENDING,
            result=None,
            error=None,
            pending_reason="waiting for room on this machine",
            num_failed_attempts=0,
            created_at=NOW,
            started_at=None,
            finished_at=None,
            terminated=False,
            num_values=0,
            revision=1,
            parent_id=request.parent_id,
        )
        if not self.is_holding:
            self.run(name)
        return name

    def _wait(self, request):
        def ended():
            found = [self.invocations[name] for name in request.invocation_ids]
            return [info for info in found if info.status in wire.FINAL_STATUSES]

        self._changed.wait_for(ended, request.wait_s)
        return wire.WaitAnswer(ended())

    def _values(self, name, after):
        numbered = [wire.Value(n, text) for n, text in enumerate(self.values[name], 1)]
        is_ended = self.invocations[name].status in wire.FINAL_STATUSES
        page = [value for value in numbered if value.number > after][:2]
        is_last = not page or page[-1].number == len(numbered)
        return wire.ValuesAnswer(page, is_ended and is_last)

    def _page(self, query):
        found = [
            wire.InvocationItem(
                info.invocation_id, info.project, info.function, info.version_id, info.status,
                None, 0, NOW, None, None,
            )
            for info in reversed(list(self.invocations.values()))
            if info.function == query["function"]
            and query.get("status") in (None, info.status)
        ]  # fmt: skip
        offset = int(query.get("offset") or 0)
        following = str(offset + 50) if len(found) > offset + 50 else None
        return wire.InvocationList(found[offset : offset + 50], following)


# --- misbehaviours ---


def reset(handler):
    """Closes the connection without an answer."""
    handler.close_connection = True


def status(code, body=b"<html>bad gateway</html>", kind="text/html", **headers):
    """An answer that is none of a control plane's."""
    return lambda handler: handler.send(code, body, kind, headers)


def cut_off(handler):
    """Half of an answer."""
    handler.send(200, b'{"status":', "application/json", {}, length=1000)
    handler.close_connection = True


def close_after(handler):
    """A good answer, after which the connection is closed although it was to be kept alive."""
    handler.serve()
    handler.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def get_request(self):
        self.plane.connections += 1
        return super().get_request()

    def handle_error(self, request, client_address):
        """Broken connections are part of the game."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def handle_request(self):
        split = urlsplit(self.path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.place = (self.command, unquote(split.path), dict(parse_qsl(split.query)))
        plane = self.server.plane
        plane.requests.append((*self.place, self.body))
        if plane._misbehaviours:
            plane._misbehaviours.pop(0)(self)
        else:
            self.serve()

    do_GET = do_POST = do_PUT = handle_request

    def serve(self):
        try:
            answer, code = self.server.plane.answer(*self.place, self.body), 200
        except errors.MultinodeError as error:
            code = errors.HTTP_STATUS[error.code]
            answer = {"error": wire.ErrorBody(error.code, error.message, error.hint)}
        body = json.dumps(wire.to_plain(answer)).encode()
        self.send(code, body, "application/json", {"Multinode-Version": "2.0.0"})

    def send(self, code, body, kind, headers, length=None):
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *_):
        """Quiet."""
