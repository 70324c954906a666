"""What is printed, where, and how: colour, motion, questions, JSON, errors."""

import io
import json
import sys

import pytest
from rich.console import Console as RichConsole
from tests.cli.scripted_control_plane import Refusal, invocation
from tests.cli.terminal import Terminal, at_terminal

from multinode.errors import InputError, InvocationFailedError
from multinode_cli.commands import run
from multinode_cli.console import ChangingLine, Console
from multinode_cli.settings import read_settings

HEADERS, ROWS = ("INVOCATION", "STATUS"), [("inv-1", "FAILED"), ("inv-22", "RUNNING")]


def console(*, as_json=False, debug=False):
    return Console(read_settings(profile=None, as_json=as_json, debug=debug))


# --- colour and motion ---


@pytest.mark.parametrize(
    ("text", "shown"), [("[x] installing", "[x] installing"), ("x" * 40, "x" * 17 + "…")]
)
def test_the_changing_line_stays_one_line(text, shown):
    terminal = RichConsole(file=io.StringIO(), force_terminal=True, width=20)
    status = terminal.status("")
    ChangingLine(status).say(text)
    with terminal.capture() as capture:
        terminal.print(status)
    assert capture.get().rstrip("\n").endswith(f" {shown}")
    assert capture.get().count("\n") <= 1


def test_a_terminal_has_colour_and_a_changing_line(monkeypatch):
    terminal = at_terminal(monkeypatch)
    printer = console()
    printer.table(HEADERS, ROWS)
    printer.warn("careful")
    with printer.changing_line("working") as line:
        assert line.is_visible
        printer.note("a line above it")
    assert "\x1b[31mFAILED\x1b[0m" in terminal.stdout.getvalue()
    assert "\x1b[33mwarning: careful\x1b[0m" in terminal.stderr.getvalue()
    assert "a line above it" in terminal.stderr.getvalue()
    assert "working" in terminal.stderr.getvalue()


@pytest.mark.parametrize("environ", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_no_colour_and_no_motion_where_the_environment_says_so(monkeypatch, environ):
    terminal = at_terminal(monkeypatch)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert_plain(console(), terminal)


def test_no_colour_and_no_motion_without_a_terminal(monkeypatch):
    terminal = at_terminal(monkeypatch)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(getattr(sys, name), "isatty", lambda: False)
    assert_plain(console(), terminal)


def test_stdout_in_a_pipe_has_no_colour_though_stderr_has(monkeypatch):
    terminal = at_terminal(monkeypatch)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    printer = console()
    printer.out(printer.styled("text", "bold"))
    printer.note("talk", "red")
    assert terminal.stdout.getvalue() == "text\n"
    assert terminal.stderr.getvalue() == "\x1b[31mtalk\x1b[0m\n"


def assert_plain(printer, terminal):
    printer.table(HEADERS, ROWS)
    printer.warn("careful")
    with printer.changing_line("working") as line:
        assert not line.is_visible
        line.say("still working")
    assert terminal.stdout.getvalue().splitlines() == [
        "INVOCATION  STATUS",
        "inv-1       FAILED",
        "inv-22      RUNNING",
    ]
    assert terminal.stderr.getvalue() == "warning: careful\n"


def test_an_empty_no_color_says_nothing(monkeypatch):
    at_terminal(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "")
    assert console().styled("text", "bold") == "\x1b[1mtext\x1b[0m"


def test_what_a_function_says_is_not_read_as_markup(monkeypatch):
    terminal = at_terminal(monkeypatch)
    printer = console()
    with printer.changing_line("working") as line:
        printer.note("[red]not a colour[/red] [1, 2]")
        line.say("[bold]text")
    said = terminal.stderr.getvalue()
    assert "[red]not a colour[/red] [1, 2]" in said


def test_columns_are_as_wide_as_they_look(monkeypatch):
    terminal = at_terminal(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    console().table(("NAME", "AGE"), [("日本", "1"), ("abc", "2")])
    assert terminal.stdout.getvalue().splitlines() == ["NAME  AGE", "日本  1", "abc   2"]


WIDE = ("ID", "STATUS", "RAN", "REASON")
CELLS = [
    ("inv-1", "PENDING", "", "waiting for room: 4 of 4 cpu in use"),
    ("inv-22", "FAILED", "", ""),
]


def printed(monkeypatch, columns):
    terminal = at_terminal(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    console().table(WIDE, CELLS)
    return terminal.stdout.getvalue().splitlines()


def test_a_table_that_fits_is_a_table(monkeypatch):
    assert printed(monkeypatch, 80) == [
        "ID      STATUS   RAN  REASON",
        "inv-1   PENDING       waiting for room: 4 of 4 cpu in use",
        "inv-22  FAILED",
    ]


def test_a_narrow_terminal_wraps_the_last_column_and_drops_what_is_empty(monkeypatch):
    assert printed(monkeypatch, 40) == [
        "ID      STATUS   REASON",
        "inv-1   PENDING  waiting for room: 4 of",
        "                 4 cpu in use",
        "inv-22  FAILED",
    ]


def test_a_very_narrow_terminal_has_the_columns_below_each_other(monkeypatch):
    assert printed(monkeypatch, 30) == [
        "inv-1",
        "  STATUS  PENDING",
        "  REASON  waiting for room: 4 of 4 cpu in use",
        "inv-22",
        "  STATUS  FAILED",
    ]


def test_a_status_has_its_colour_on_a_narrow_terminal_too(monkeypatch):
    terminal = at_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "30")
    console().table(WIDE, CELLS)
    assert "  STATUS  \x1b[31mFAILED\x1b[0m\n" in terminal.stdout.getvalue()


def test_a_pipe_has_no_width(monkeypatch):
    terminal = at_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    console().table(WIDE, CELLS)
    assert terminal.stdout.getvalue().splitlines()[0] == "ID      STATUS   RAN  REASON"


def test_an_encoding_that_lacks_a_character_loses_no_line(monkeypatch):
    at_terminal(monkeypatch)
    monkeypatch.setattr(sys, "stdout", Terminal(encoding="ascii"))
    console().out("3 ✓")
    assert sys.stdout.getvalue() == "3 \\u2713\n"


# --- JSON ---


def test_json_envelopes_are_one_line_each(monkeypatch):
    terminal = at_terminal(monkeypatch)
    printer = console(as_json=True)
    printer.data({"b": 1})
    failed = InvocationFailedError("inv-1 FAILED", "Look.", invocation_id="inv-1")
    printer.data({"status": "FAILED"}, failed)
    printer.error(InputError("Wrong.", "Do this."))
    assert [json.loads(line) for line in terminal.stdout.getvalue().splitlines()] == [
        {"ok": True, "data": {"b": 1}},
        {
            "ok": False,
            "error": {"code": failed.code, "message": "inv-1 FAILED", "hint": "Look."},
            "data": {"status": "FAILED"},
        },
        {"ok": False, "error": {"code": "invalid_input", "message": "Wrong.", "hint": "Do this."}},
    ]
    assert terminal.stderr.getvalue() == ""


@pytest.mark.parametrize(
    "words",
    [
        ("list",), ("ps", "-a"), ("describe", "billing"), ("describe", "inv-1"), ("logs", "inv-1"),
        ("result", "inv-1"), ("cancel", "inv-1"), ("retry", "inv-1"), ("undeploy", "billing", "-y"),
        ("rollback", "billing"), ("invoke", "billing/add"), ("key", "list"), ("key", "revoke", "ci"),
        ("check",), ("deploy",), ("profile", "use", "nobody"), ("logout",), ("login",), ("run", "add"),
        ("describe", "--execution-id", "exe-1"), ("nonsense",), ("list", "--nonsense"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_with_json_an_error_is_one_object_and_stderr_is_silent(cli, plane, words):
    """The plane of this test answers that there is nothing there."""
    outcome = cli(*words, "--json")
    assert outcome.code in (1, 2, 3, 4)
    assert (outcome.json["ok"], outcome.err) == (False, "")
    assert outcome.json["error"]["message"]


def test_data_and_talk_are_on_two_streams(cli, plane):
    plane.on("GET", "/v1/projects", [])
    outcome = cli("list")
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err.startswith("There is no project yet.")


# --- errors ---


def test_an_error_is_what_happened_and_what_to_do(cli, plane):
    plane.on("GET", "/v1/projects", Refusal(403, "not_allowed", "Not with this key.", "Ask."))
    outcome = cli("list")
    assert (outcome.code, outcome.out) == (4, "")
    assert outcome.err == "error: Not with this key.\nAsk.\n"


@pytest.mark.parametrize("extra", [(), ("--json",)])
def test_a_traceback_is_shown_with_debug_alone(cli, plane, extra):
    assert "Traceback" not in cli("list", *extra).err
    outcome = cli("list", "--debug", *extra)
    assert "Traceback (most recent call last):" in outcome.err
    assert outcome.code == 3


def test_options_behind_two_dashes_are_arguments(cli, plane):
    """--json after -- is for the function, not for the command."""
    assert cli("invoke", "billing/add", "--", "--json").err.startswith("error: ")


# --- questions ---


def test_a_question_is_asked_at_a_terminal(monkeypatch):
    terminal = at_terminal(monkeypatch)
    monkeypatch.setattr(sys, "stdin", Terminal("YES\nno\n\nhttps://example.com\n"))
    printer = console()
    assert printer.confirm("Really?", what="It", flag="-y") is True
    assert printer.confirm("Really?", what="It", flag="-y") is False
    assert printer.confirm("Really?", what="It", flag="-y") is False
    assert printer.ask("URL", flag="the URL") == "https://example.com"
    assert terminal.stderr.getvalue() == "Really? [y/N] " * 3 + "URL: "
    assert terminal.stdout.getvalue() == ""


def test_ctrl_c_at_a_question_ends_its_line(plane, monkeypatch, tmp_path):
    class Interrupting(Terminal):
        def readline(self):
            raise KeyboardInterrupt

    terminal = at_terminal(monkeypatch)
    monkeypatch.setattr(sys, "stdin", Interrupting())
    monkeypatch.chdir(tmp_path)
    assert run(["login"]) == 130
    assert terminal.stderr.getvalue() == "URL of the control plane: \nInterrupted.\n"


def test_without_a_terminal_the_flag_is_named(monkeypatch):
    at_terminal(monkeypatch)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False)
    with pytest.raises(InputError) as caught:
        console().confirm("Really?", what="The removal of x", flag="-y")
    assert (caught.value.message, caught.value.hint) == (
        "The removal of x has to be confirmed, and this is no terminal.",
        "Pass -y.",
    )
    with pytest.raises(InputError, match="URL is missing"):
        console().ask("URL", flag="the URL")


def test_with_json_nothing_is_asked(monkeypatch):
    at_terminal(monkeypatch)
    with pytest.raises(InputError):
        console(as_json=True).confirm("Really?", what="It", flag="-y")


def test_a_reader_that_goes_away_is_no_traceback(plane, monkeypatch, capsys, tmp_path):
    """``multinode ps -a | head -1``."""

    class Closed:
        encoding = "utf-8"

        def isatty(self):
            return False

        def write(self, text):
            raise BrokenPipeError

        def flush(self):
            pass

    plane.on("GET", "/v1/invocations/inv-1", invocation())
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Closed())
        code = run(["result", "inv-1"])
    assert code == 1
    assert capsys.readouterr().err == ""
