"""Runs real workers against a control plane in memory; for the worker's tests."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from textwrap import dedent

import multinode
from multinode.codec import decode, encode_input
from multinode.wire import Assignment

SOURCE = str(Path(multinode.__file__).parent.parent)
HEADER = """
import asyncio, os, signal, socket, subprocess, sys, threading, time
import multinode
from multinode.errors import InvocationCancelledError, InvocationTimedOutError
mn = multinode.Multinode()

def mark(text="here"):
    with socket.create_connection(("127.0.0.1", int(os.environ["MARK"]))) as connection:
        connection.sendall(str(text).encode())
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)

"""


def environment(**more):
    passed = {name: value for name, value in os.environ.items() if not name.startswith("MULTINODE")}
    return {**passed, "PYTHONPATH": SOURCE, **more}


class StarterProcess:
    """A starter, and what it has said."""

    def __init__(self):
        self.connection, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "multinode.worker.starter", "--socket-fd", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            env=environment(),
            cwd="/",
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        self.changed = threading.Condition()
        self.pids = {}
        self.failures = {}
        self.gone = {}
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, launch, *, fresh=False, env=None):
        order = {"start": json.loads(launch.to_json()), "fresh": fresh, "env": env or {}}
        self.connection.sendall(json.dumps(order).encode() + b"\n")

    def wait_for(self, predicate, timeout_s=60.0):
        with self.changed:
            assert self.changed.wait_for(predicate, timeout_s), "the starter said nothing"

    def close(self):
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.process.wait(60)
        self.connection.close()

    def _listen(self):
        with self.connection.makefile("r") as lines:
            for line in lines:
                message = json.loads(line)
                with self.changed:
                    if "started" in message:
                        self.pids[message["started"]] = message["pid"]
                    elif "failed" in message:
                        self.failures[message["failed"]] = message["message"]
                    else:
                        self.gone.setdefault(message["gone"], []).append(message["status"])
                    self.changed.notify_all()


class Run:
    """One worker."""

    def __init__(self, bench, launch):
        self.launch = launch
        self.id = launch.worker_id
        self.record = bench.plane.record(self.id)
        self.process = None
        self._bench = bench

    @property
    def pid(self):
        if self.process is not None:
            return self.process.pid
        self._bench.starter.wait_for(lambda: self.id in self._bench.starter.pids)
        return self._bench.starter.pids[self.id]

    def hand(self, *args, **task):
        """One more invocation for this worker, when it asks."""
        record = self._bench.plane.hand(self.id, input=encode_input(args, {}), **task)
        return Later(self, record)

    def wait_asking(self, number):
        """Waits until it asks for its ``number``th invocation."""
        self._bench.plane.wait_for(lambda: [r for r in self.record.nexts if r.number == number])
        return self

    def dismiss(self):
        self._bench.plane.dismiss(self.id)

    def wait_claimed(self):
        self._bench.plane.wait_for(lambda: self.record.claims)
        return self

    def end(self, timeout_s=60.0):
        """How it ended, once it has."""
        self._bench.plane.wait_for(lambda: self.record.end, timeout_s)
        return self.record.end

    def result(self):
        end = self.end()
        assert (end.outcome, end.error) == ("succeeded", None)
        return decode(end.result)

    def gone(self, timeout_s=60.0):
        """The supervisor's exit status, once nothing is left."""
        if self.process is not None:
            return self.process.wait(timeout_s)
        self._bench.starter.wait_for(lambda: self.id in self._bench.starter.gone, timeout_s)
        return self._bench.starter.gone[self.id][-1]

    def mark(self):
        """What the function tells by ``mark()``, which returns then; waits for it."""
        connection, _ = self._bench.listener.accept()
        with connection, connection.makefile("r") as words:
            return words.read()

    def cancel(self):
        return self._bench.plane.cancel(self.id)

    def values(self):
        return [decode(value.value) for _, value in sorted(self.record.values.items())]

    def records(self):
        with suppress(FileNotFoundError):
            lines = Path(self.launch.log_file).read_text().splitlines()
            return [json.loads(line) for line in lines]
        return []

    def log(self, stream="stdout"):
        return "".join(item["text"] for item in self.records() if item["stream"] == stream)

    def leftovers(self):
        """Processes whose working folder is the worker's, or was."""
        found = []
        own = self.launch.work_dir
        for name in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):
                folder = os.readlink(f"/proc/{name}/cwd")
                # work-10 is no part of work-1; Linux says "work-1 (deleted)" of a folder that is gone
                if folder.split(" (deleted)")[0] == own or folder.startswith(f"{own}/"):
                    found.append(int(name))
        return found


class Later(Run):
    """One more invocation of a worker."""

    def __init__(self, run, record):
        self.id = record.assignment.execution_id
        folder = Path(run.launch.log_file or "/nowhere").parent
        self.launch = run.launch.replace(log_file=str(folder / f"{self.id}.jsonl"))
        self.record = record
        self.process = run.process
        self._bench = run._bench


class Bench:
    """Starts workers: ``bench.run("@mn.function()\\ndef f(): …")``."""

    def __init__(self, folder, starter, plane):
        self.folder = folder
        self.starter = starter
        self.plane = plane
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(60)
        self._runs = []

    def run(
        self,
        source,
        *args,
        how="starter",
        variables=None,
        files=None,
        dotenv=None,
        launch=None,
        is_ahead=False,
        **assignment,
    ):
        """A worker that runs ``f(*args)`` of a ``main.py`` with this text."""
        number = len(self._runs) + 1
        code = self.folder / f"code-{number}"
        code.mkdir()
        (code / "main.py").write_text(HEADER + dedent(source))
        for name, text in (files or {}).items():
            (code / name).parent.mkdir(parents=True, exist_ok=True)
            (code / name).write_text(text)
        fields = {
            "token": "",
            "kind": "invocation",
            "project": "p",
            "version_id": "v",
            "bundle_digest": "",
            "function": "f",
            "input": encode_input(args, {}),
            "grace_s": 1.0,
            "dotenv": {"MARK": str(self.listener.getsockname()[1]), **(dotenv or {})},
        }
        paths = {
            "code_dir": str(code),
            "work_dir": str(self.folder / f"work-{number}"),
            "worker_file": str(self.folder / f"worker-{number}.json"),
            "log_file": str(self.folder / f"log-{number}.jsonl"),
        }
        return self.launch(
            self.plane.assign(
                Assignment(**{**fields, **assignment}),
                is_ahead=is_ahead,
                worker_id=f"wrk-{os.getpid()}-{time.monotonic_ns()}",
                **{**paths, **(launch or {})},
            ),
            how,
            variables,
        )

    def launch(self, launch, how="starter", variables=None):
        run = Run(self, launch)
        self._runs.append(run)
        if how == "starter":
            self.starter.start(launch)
        elif how == "fresh":
            self.starter.start(launch, fresh=True, env=variables)
        else:  # "interpreter", or a command in front of it
            prefix = [] if how == "interpreter" else how
            run.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "multinode.worker"],
                env=environment(MULTINODE_LAUNCH=launch.to_json()),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        return run

    def clean_up(self):
        """Every worker is gone, of itself, and nothing of it is left."""
        for run in self._runs:
            run.dismiss()
            run.gone()
            assert run.leftovers() == []
            assert not os.path.exists(run.launch.work_dir)
        self.listener.close()
