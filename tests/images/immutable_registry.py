"""A proxy in front of a registry that keeps each tag as it is, as ECR does with tag immutability switched on."""

from __future__ import annotations

import http.client
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_MANIFEST = re.compile(r"/v2/(.+)/manifests/([^/:]+)")
_HOP = ("connection", "transfer-encoding", "keep-alive")


@contextmanager
def immutable(registry, refusals=None, asked=None):
    """Yields the proxy's address. ``refusals`` gets each tag whose change was refused, ``asked`` the method of each request."""
    refused = [] if refusals is None else refusals
    methods = [] if asked is None else asked

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self):
            methods.append(self.command)
            body = self.body()
            wanted = _MANIFEST.fullmatch(self.path)
            if self.command == "PUT" and wanted and self.has_other(body):
                self.refuse(*wanted.groups())
                return
            connection, answer = self.ask(self.command, body, self.headers.items())
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in (*_HOP, "content-length"):
                    self.send_header(name, value)
            content = answer.read()
            length = answer.getheader("Content-Length") if self.command == "HEAD" else len(content)
            self.send_header("Content-Length", str(length or 0))
            self.end_headers()
            self.wfile.write(content)
            connection.close()

        do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = forward

        def ask(self, method, body, headers):
            connection = http.client.HTTPConnection(registry)
            connection.putrequest(method, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers:  # some come more than once
                if name.lower() not in (*_HOP, "content-length"):
                    connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            return connection, connection.getresponse()

        def has_other(self, body):
            headers = [(n, v) for n, v in self.headers.items() if n in ("Host", "Authorization")]
            headers.append(("Accept", "application/vnd.docker.distribution.manifest.v2+json"))
            connection, answer = self.ask("GET", None, headers)
            found = answer.read()
            connection.close()
            return answer.status == 200 and found != body

        def refuse(self, repository, tag):
            refused.append(tag)
            message = (
                f"The image tag '{tag}' already exists in the '{repository}' repository and cannot be "
                "overwritten because the tag is immutable."
            )
            body = json.dumps({"errors": [{"code": "TAG_INVALID", "message": message}]}).encode()
            self.send_response(400)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def body(self):
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
            pieces = []
            while size := int(self.rfile.readline() or b"0", 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
