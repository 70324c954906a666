"""``dev``: a deploy at every save, and what the project's functions print, until Ctrl-C.

The main thread watches and deploys; one thread looks for new invocations, and each of these has one that follows its output. All of
them speak through one `_Voice`, a whole line at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from multinode.client import Client, path_of
from multinode.errors import MultinodeError
from multinode.wire import Empty, InvocationInfo, InvocationList, LogRecord, StopRequest, loads
from multinode_cli import release
from multinode_cli.commands import local_server
from multinode_cli.commands.following import LineJoiner
from multinode_cli.commands.frame import Answer, Commands, Session
from multinode_cli.commands.names import ProjectName
from multinode_cli.commands.shown import value_text
from multinode_cli.console import Console, Style
from multinode_cli.tasks_folder import ProjectFile

commands = Commands()

LOOK_S = 0.3
"""How often new invocations are looked for; each is then followed by an open request."""
SAVES_MS = 300
"""Saves within this time of each other are one deploy."""
FOLLOWED = 32
"""Invocations whose output is followed at a time; the others' comes when one of these has ended."""


@commands.add("dev", has_json=False)
def dev(
    session: Session,
    tasks_dir: Annotated[
        str | None,
        typer.Argument(
            metavar="TASKS_DIR", help="The tasks folder, or a folder above it.", show_default=False
        ),
    ] = None,
    project_name: ProjectName = None,
) -> Answer:
    """Deploy to a local control plane at every save, and print what functions do, until Ctrl-C.

    Example: multinode dev
    """
    folder = Path(tasks_dir) if tasks_dir else None
    source = release.read(folder)
    project_file, name = source.project_file, release.project_name(source, project_name)
    was_running = local_server.find(session.settings.home) is not None
    server = local_server.ensure(session.settings, session.console, ended_by="Ctrl-C")
    client = Client(server.url, server.key)
    voice = _Voice(session.console)
    logs = _Logs(client, name, voice)
    try:
        with suppress(KeyboardInterrupt):
            _deploy_at_saves(session, _Work(folder, project_file, name, client), voice, logs)
    finally:
        logs.stop()
        if not was_running:
            _end(server, client, voice)
    return Answer()


@dataclass(frozen=True)
class _Work:
    """What is deployed, and where to."""

    folder: Path | None
    project_file: ProjectFile
    project: str
    client: Client


class _Voice:
    """Prints whole lines, whichever thread says them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()

    def say(self, text: str, style: Style | None = None) -> None:
        """A line for people."""
        with self._lock:
            self._console.note(text, style)

    def error(self, error: MultinodeError) -> None:
        """An error, as a command tells it."""
        with self._lock:
            self._console.error(error)


def _deploy_at_saves(session: Session, work: _Work, voice: _Voice, logs: _Logs) -> None:
    logs.start()
    is_good = _deploy(session, work, voice)
    voice.say(f"Watching {work.project_file.tasks}; Ctrl-C ends this.", "dim")
    for _ in _saves(work.project_file):
        is_good = _deploy(session, work, voice, has_good=is_good) or is_good


def _saves(project_file: ProjectFile) -> Iterator[None]:
    """Once for each save, or several that come together. What is saved while a deploy goes on comes after it."""
    from watchfiles import DefaultFilter, watch  # lazy: start-up time

    class Ours(DefaultFilter):
        """What a deploy reads, without editors' own files."""

        def __call__(self, change: object, path: str) -> bool:
            is_ours = Path(path).is_relative_to(project_file.tasks) or path == toml
            return is_ours and super().__call__(change, path)  # type: ignore[arg-type]

    toml = str(project_file.root / "multinode.toml")
    for _ in watch(
        project_file.root, watch_filter=Ours(), debounce=1600, step=SAVES_MS, raise_interrupt=True
    ):
        yield


def _deploy(session: Session, work: _Work, voice: _Voice, *, has_good: bool = False) -> bool:
    """Deploys what is there now; tells what is wrong with it instead. Returns whether it was good."""
    try:
        checked = release.check(release.read(work.folder))
        target = release.aim(
            checked,
            work.client,
            project=work.project,
            create=True,
            environ=session.settings.environ,
        )
        built = release.build(target, work.client, _Build(voice), environ=session.settings.environ)
        described = release.describe(release.upload(built, work.client), work.client)
        released = release.register(described, work.client, create=True)
    except MultinodeError as error:
        voice.error(error)
        if has_good:
            voice.say("The last good version goes on.", "dim")
        return False
    number, names = released.version.number, [f.name for f in released.version.functions]
    verb = "Deployed" if released.answer.created or released.answer.made_latest else "Unchanged:"
    voice.say(f"{verb} {work.project} version {number}: {', '.join(names)}", "green")
    return True


class _Build:
    """Tells a build as it goes on."""

    def __init__(self, voice: _Voice) -> None:
        self._voice = voice

    def step(self, title: str) -> None:
        """A step of an image's build begins."""
        self._voice.say(f"  {title}")

    def line(self, text: str) -> None:
        """A line of output."""
        self._voice.say(f"  {text}", "dim")

    def moment(self, text: str) -> None:
        """How far a step has come is not told."""


class _Logs:
    """Tells what happens to the project's invocations from `start` to `stop`."""

    def __init__(self, client: Client, project: str, voice: _Voice) -> None:
        self._client = client
        self._project = project
        self._voice = voice
        self._seen: set[str] = set()
        self._is_over = threading.Event()
        self._places = threading.Semaphore(FOLLOWED)

    def start(self) -> None:
        """From now on; what was started before is not told."""
        with suppress(MultinodeError):
            self._seen.update(item for item, _ in self._recent())
        threading.Thread(target=self._look, name="look", daemon=True).start()

    def stop(self) -> None:
        """Says nothing more."""
        self._is_over.set()

    def _recent(self) -> list[tuple[str, str]]:
        path = path_of("invocations", project=self._project)
        found = self._client.call(InvocationList, "GET", path).invocations
        return [(item.invocation_id, item.function) for item in reversed(found)]

    def _look(self) -> None:
        while not self._is_over.wait(LOOK_S):
            recent: list[tuple[str, str]] = []
            with suppress(MultinodeError):  # before the first good deploy there is no project
                recent = self._recent()
            for invocation_id, function in recent:
                if invocation_id not in self._seen:
                    self._seen.add(invocation_id)
                    threading.Thread(
                        target=self._follow, args=(invocation_id, function), daemon=True
                    ).start()

    def _follow(self, invocation_id: str, function: str) -> None:
        label = f"{function} {invocation_id[4:10]}"
        with self._places, suppress(MultinodeError):
            self._say(f"{label} started ({invocation_id})", "cyan")
            joiner = LineJoiner()
            logs = path_of("invocations", invocation_id, "logs", follow=True)
            for line in self._client.stream("GET", logs):
                for text in joiner.take(loads(LogRecord, line)):
                    self._say(f"{label} | {text}")
            for text in joiner.flush():
                self._say(f"{label} | {text}")
            self._tell_end(label, invocation_id)

    def _tell_end(self, label: str, invocation_id: str) -> None:
        ended = self._client.call(InvocationInfo, "GET", path_of("invocations", invocation_id))
        if ended.error is None:
            self._say(f"{label} {ended.status} {value_text(ended.result)}", "cyan")
            return
        for text in ended.error.traceback.rstrip().splitlines():
            self._say(f"{label} | {text}")
        self._say(f"{label} {ended.status} {ended.error.message}", "red")

    def _say(self, text: str, style: Style | None = None) -> None:
        if not self._is_over.is_set():
            self._voice.say(text, style)


def _end(server: local_server.RunningServer, client: Client, voice: _Voice) -> None:
    """Ends the control plane that this command has started, with what runs in it."""
    voice.say("Stopping the local control plane, and what runs in it.")
    client.call(Empty, "POST", "/v1/server/stop", StopRequest("now"))
    local_server.wait_until_gone(server)
