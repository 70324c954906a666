"""A private package index, in a container of its own: what an image is built in cannot reach loopback."""

import io
import tarfile
import zipfile

from tests.images.certificates import write_certificates

SERVER = """
import base64, http.server, re, ssl, sys, threading
WHEELS = "/srv"
PORTS = dict(env=8080, netrc=8081, line=8082, hang=8083, tls=8084)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        user, _, rest = self.path.lstrip("/").partition("/")
        assert self.server.server_port == PORTS[user]
        if user == "hang":
            threading.Event().wait()
        wanted = "Basic " + base64.b64encode(f"{user}:{user}-pw".encode()).decode()
        if self.headers.get("Authorization") != wanted:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="index"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        name = f"from_{user}-1.0-py3-none-any.whl"
        if rest.endswith(".whl"):
            body = open(f"{WHEELS}/{name}", "rb").read()
        elif rest in ("", f"from-{user}/"):
            body = f'<a href="/{user}/{name}">{name}</a>'.encode()
        else:
            body = None
        self.send_response(200 if body else 404)
        self.send_header("Content-Type", "text/html" if not rest.endswith(".whl") else "application/zip")
        self.send_header("Cache-Control", "max-age=3600" if rest.endswith(".whl") else "no-store")
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")
is_tls = "tls" in sys.argv
servers = [http.server.ThreadingHTTPServer(("", port), Handler) for user, port in PORTS.items() if (user == "tls") == is_tls]
for server in servers:
    if is_tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain("/srv/server.pem")
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever).start()
"""

PORTS = {"env": 8080, "netrc": 8081, "line": 8082, "hang": 8083, "tls": 8084}
"""pip takes what it knows of a host and port for all that is there: each user has a port."""


class Index:
    """``url(user)`` is an index that lets this user in with ``<user>-pw``, and has one wheel, ``from-<user>``."""

    def __init__(self, bench):
        self._api = bench.api
        made = self._api.create_container(
            "python:3.8-bullseye", ["python", "/srv/server.py"], labels=bench.labels
        )
        self._container = made["Id"]
        self.containers = {self._container}
        self._api.put_archive(self._container, "/", _archive(_files()))
        self._api.start(self._container)
        networks = self._api.inspect_container(self._container)["NetworkSettings"]["Networks"]
        self.host = networks["bridge"]["IPAddress"]
        self._wait(PORTS["hang"])

    def open_tls(self, folder):
        """Serves the user ``tls`` too, behind TLS with a certificate of the authority that is written to ``folder/ca.pem``."""
        write_certificates(folder, address=self.host)
        files = {"srv/server.pem": (folder / "server.pem").read_bytes()}
        self._api.put_archive(self._container, "/", _archive(files))
        run = self._api.exec_create(self._container, ["python", "/srv/server.py", "tls"])
        self._api.exec_start(run["Id"], detach=True)
        self._wait(PORTS["tls"])

    def _wait(self, port):
        code = f"import socket, time\nwhile True:\n try: socket.create_connection(('127.0.0.1', {port})); break\n except OSError: time.sleep(0.01)"
        run = self._api.exec_create(self._container, ["python", "-c", code])
        self._api.exec_start(run["Id"])

    def url(self, user, credentials=""):
        scheme = "https" if user == "tls" else "http"
        return f"{scheme}://{credentials}{'@' * bool(credentials)}{self.host}:{PORTS[user]}/{user}/"

    def close(self):
        self._api.remove_container(self._container, force=True, v=True)


def _files():
    files = {"srv/server.py": SERVER.encode()}
    for user in ("env", "netrc", "line", "tls"):
        files[f"srv/from_{user}-1.0-py3-none-any.whl"] = _wheel(f"from_{user}")
    return files


def _wheel(name):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as wheel:
        folder = f"{name}-1.0.dist-info"
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{folder}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        tag = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{folder}/WHEEL", tag)
        wheel.writestr(f"{folder}/RECORD", "")
    return buffer.getvalue()


def _archive(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
