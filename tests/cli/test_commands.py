"""The commands against a control plane that answers what the test says: output, JSON, exit codes."""

import json

import pytest
from tests import command_tree
from tests.cli.scripted_control_plane import (
    LATER,
    NOW,
    Lines,
    Refusal,
    environment,
    function,
    invocation,
    server_info,
    version,
)

from multinode import wire

LATEST = "/v1/projects/billing/versions/latest"
STARTS = "/v1/projects/billing/functions/add/invocations"


def detail(in_flight=0):
    info = wire.ProjectInfo("billing", NOW, "ver-1", ["add"], in_flight)
    return wire.ProjectDetail(info, [wire.VersionItem("ver-1", 1, NOW, True, ["add"])])


# --- deploy ---


@pytest.fixture
def deployable(plane):
    """A control plane on which nothing is deployed yet."""
    plane.on("GET", "/v1/server", server_info())
    plane.on("GET", LATEST, Refusal(404, "project_not_found", "There is no project 'billing'."))
    plane.on(
        "POST",
        "/v1/projects/billing/environments",
        Lines(
            wire.BuildEvent(line="+ numpy==2"),
            wire.BuildEvent(environment=environment(created=True)),
        ),
    )
    plane.on("POST", "/v1/projects/billing/describe", wire.DescribeAnswer([function()]))
    answer = wire.RegisterAnswer("billing", "ver-1", True, True, [])
    plane.on("POST", "/v1/projects/billing/versions", answer)
    plane.on("GET", "/v1/projects/billing/versions/ver-1", version())

    def bundle(request):
        plane.on("HEAD", request.path, b"")
        return wire.Empty()

    class Answers(dict):
        def get(self, key, default=None):
            if key[0] == "PUT" and key[1].startswith("/v1/bundles/"):
                return bundle
            return super().get(key, default)

    plane.answers = Answers(plane.answers)
    return plane


def test_deploy_builds_uploads_and_registers(cli, project, deployable):
    project({"tasks/.env": "SECRET=s3cret\n"})
    outcome = cli("deploy")
    assert outcome.code == 0
    assert outcome.out.splitlines()[0] == "Deployed billing version 1 (ver-1), Python 3.11.7"
    assert "+ numpy==2" in outcome.err
    assert "Next: multinode invoke billing/add a=… b=…" in outcome.err
    (registered,) = deployable.bodies("POST", "/v1/projects/billing/versions")
    assert registered["dotenv"] == {"SECRET": "s3cret"}
    assert registered["create"] is True
    assert "s3cret" not in outcome.out + outcome.err


def test_deploy_sends_the_bundle_once(cli, project, deployable):
    project()
    cli("deploy")
    cli("deploy")
    assert [request.method for request in deployable.requests if "bundles" in request.path] == [
        "HEAD",
        "PUT",
        "HEAD",
    ]


def test_deploy_says_in_one_line_why_limits_are_not_enforced(cli, project, deployable):
    info = server_info(enforces=[], unenforced_reason="the cgroup /x is not delegated to it")
    deployable.on("GET", "/v1/server", info)
    project()
    said = "the process runner does not enforce cpu and memory on this machine: the cgroup /x is not delegated to it"
    assert cli("deploy", "--json").json["data"]["warnings"] == [said]


def test_deploy_json_has_what_scripts_need(cli, project, deployable):
    deployable.on("GET", "/v1/server", server_info(enforces=[]))
    project()
    outcome = cli("deploy", "--json")
    data = outcome.json["data"]
    assert (data["project"], data["version_id"], data["functions"], data["created"]) == (
        "billing",
        "ver-1",
        ["add"],
        True,
    )
    assert data["warnings"] == [
        "the process runner does not enforce cpu and memory on this machine"
    ]


def test_deploy_shows_what_is_asked_for_and_what_is_paid(cli, project, deployable):
    sizes = {"add": wire.WorkerSize(0.25, 512)}
    deployable.on("GET", "/v1/projects/billing/versions/ver-1", version(sizes=sizes))
    project()
    assert "  add  cpu 0.1, memory 256 MiB (paid: 0.25 vCPU and 512 MiB)" in cli("deploy").out
    told = cli("deploy", "--json").json["data"]["sizes"]
    assert told == {"add": {"cpu": 0.25, "memory_mib": 512}}


def test_deploy_says_that_nobody_chose_a_python(cli, project, deployable):
    project(toml='project = "billing"\n')
    assert "python:3.8-bullseye gets no more security fixes" in cli("deploy").err


def test_a_failed_build_shows_the_reason_and_registers_nothing(cli, project, deployable):
    error = wire.ErrorBody(
        "environment_build_failed", "numpy==1.26.1 needs Python>=3.9, the environment has 3.8."
    )
    deployable.on("POST", "/v1/projects/billing/environments", Lines(wire.BuildEvent(error=error)))
    project()
    outcome = cli("deploy")
    assert outcome.code == 2
    assert "error: numpy==1.26.1 needs Python>=3.9" in outcome.err
    assert deployable.bodies("POST", "/v1/projects/billing/versions") == []


def test_a_build_that_breaks_off_is_an_error(cli, project, deployable):
    deployable.on("POST", "/v1/projects/billing/environments", Lines(wire.BuildEvent(line="…")))
    project()
    assert cli("deploy").code == 5


def test_upgrade_of_a_missing_project_builds_nothing(cli, project, deployable):
    project()
    outcome = cli("upgrade")
    assert outcome.code == 3
    assert {request.method for request in deployable.requests} == {"GET"}


def plans(plane, event, **answer):
    """Lets the control plane say what a deploy would do."""
    plane.on("POST", "/v1/projects/billing/environments", Lines(event))
    given = {"version_id": "", "created": True, "made_latest": True, "changes": []}
    told = wire.RegisterAnswer(project="billing", **{**given, **answer})
    plane.on("POST", "/v1/projects/billing/versions", told)


def all_are_plans(plane):
    return all(
        json.loads(request.body)["plan"] for request in plane.requests if request.method != "GET"
    )


def test_plan_of_a_new_project_changes_nothing(cli, project, deployable):
    plans(deployable, wire.BuildEvent(missing="f" * 64))
    project()
    outcome = cli("deploy", "--plan", "--json")
    data = outcome.json["data"]
    assert (data["creates_project"], data["environment"], data["version"]) == (True, "made", "new")
    assert all_are_plans(deployable)
    assert cli("deploy", "--plan").out.startswith("deploy would create project billing:\n")


def test_plan_tells_what_differs_from_the_latest_version(cli, project, deployable):
    from pathlib import Path

    from multinode_cli.tasks_folder import list_files, pack, read_project_file

    root = project({"tasks/requirements.txt": "a\n", "tasks/old.py": ""})
    before = read_project_file(Path(root))
    archive = pack(before, list_files(before)[0]).archive
    project({"tasks/requirements.txt": "b\n", "tasks/old.py": None, "tasks/.env": "A=1\n"})
    changes = ["environment: changed", "code: changed", ".env A: changed"]
    plans(deployable, wire.BuildEvent(missing="f" * 64), changes=changes)
    deployable.on("GET", LATEST, version([function("gone")]))
    deployable.on("GET", f"/v1/bundles/{'b' * 64}", archive)
    outcome = cli("deploy", "--plan")
    assert outcome.out.splitlines() == [
        "deploy would add a version to project billing:",
        "  environment: tasks/requirements.txt differs",
        "  function add: new",
        "  function gone: gone",
        "  file tasks/old.py: gone",
        "  file tasks/requirements.txt: changed",
        "  .env A: changed",
        "The environment would be made. Nothing was changed.",
    ]
    assert all_are_plans(deployable)


@pytest.mark.parametrize(
    ("event", "answer", "said"),
    [
        (
            wire.BuildEvent(environment=environment()),
            {"version_id": "ver-1", "created": False, "made_latest": False},
            ["deploy would add no version to project billing: nothing differs from the latest one.",
             "The environment would stay as it is. Nothing was changed."],
        ),
        (
            wire.BuildEvent(environment=environment(digest="f" * 64)),
            {"version_id": "ver-0", "created": False, "changes": ["environment: changed"]},
            ["deploy would make an earlier version of project billing the latest again:",
             "  environment: its `apt` or `base_image`, an index setting, the Python that serves, or the release of Multinode differs",
             "The environment would be one that is there already. Nothing was changed."],
        ),
        (
            wire.BuildEvent(missing="e" * 64),
            {"version_id": "ver-1", "created": False, "made_latest": False},
            ["deploy would add no version to project billing: nothing differs from the latest one.",
             "  environment: is made anew",
             "The environment would be made. Nothing was changed."],
        ),
    ],
)  # fmt: skip
def test_plan_says_what_becomes_of_version_and_environment(
    cli, project, deployable, event, answer, said
):
    plans(deployable, event, **answer)
    deployable.on("GET", LATEST, version())
    project()
    assert cli("deploy", "--plan").out.splitlines() == said


# --- projects ---


def test_list_is_a_table(cli, plane):
    plane.on("GET", "/v1/projects", [detail(in_flight=2).project])
    assert cli("list").out.splitlines() == [
        "PROJECT  LATEST VERSION  IN FLIGHT  FUNCTIONS",
        "billing  ver-1           2          add",
    ]


def test_list_json_is_one_envelope(cli, plane):
    plane.on("GET", "/v1/projects", [detail().project])
    outcome = cli("list", "--json")
    assert outcome.json["ok"] is True
    assert outcome.json["data"][0]["project"] == "billing"


def test_undeploy_waits_until_it_is_gone(cli, plane):
    plane.on("GET", "/v1/projects/billing", detail(in_flight=1))
    answers = iter(
        [wire.DeletedProject("billing", False, 1), wire.DeletedProject("billing", True, 0)]
    )
    plane.on("DELETE", "/v1/projects/billing", lambda request: next(answers))
    outcome = cli("undeploy", "billing", "-y")
    assert (outcome.code, outcome.out) == (0, "Removed project billing.\n")


def test_rollback_takes_numbers(cli, plane):
    plane.on("GET", "/v1/projects/billing", detail())
    plane.on("PUT", "/v1/projects/billing/latest", detail().versions[0])
    assert "is now 1 (ver-1)" in cli("rollback", "billing", "1").out
    assert plane.bodies("PUT", "/v1/projects/billing/latest") == [{"version_id": "ver-1"}]


def test_describe_a_project_and_a_function(cli, plane):
    plane.on("GET", "/v1/projects/billing", detail())
    plane.on("GET", LATEST, version([function(memory_mib=2048, timeout_s=60.0)]))
    plane.on("GET", "/v1/invocations", wire.InvocationList([], None))
    assert "add(a, b)  cpu 0.1, memory 2 GiB, timeout 60.0 s" in cli("describe", "billing").out
    outcome = cli("describe", "billing/add")
    assert "memory                     2048 MiB" in outcome.out
    assert "paid" not in outcome.out


def test_describe_shows_what_is_paid_where_workers_come_in_sizes(cli, plane):
    sized = version([function(), function("free")], sizes={"add": wire.WorkerSize(16.0, 65536)})
    plane.on("GET", "/v1/projects/billing", detail())
    plane.on("GET", LATEST, sized)
    plane.on("GET", "/v1/invocations", wire.InvocationList([], None))
    told = cli("describe", "billing").out
    assert "add(a, b)  cpu 0.1, memory 256 MiB (paid: 16 vCPU and 64 GiB)" in told
    assert "free(a, b)  cpu 0.1, memory 256 MiB\n" in told
    assert "paid                       16 vCPU and 64 GiB" in cli("describe", "billing/add").out
    size = cli("describe", "billing/add", "--json").json["data"]["size"]
    assert size == {"cpu": 16.0, "memory_mib": 65536}


def test_describe_an_invocation_shows_its_attempts(cli, plane):
    error = wire.FunctionError(
        "ValueError: bad bound", "ValueError", "Traceback …\nValueError: bad bound"
    )
    steps = [
        wire.TimelineStep("worker requested", NOW, 0.0),
        wire.TimelineStep("started", NOW, 12.5),
    ]
    execution = wire.ExecutionInfo(
        "exe-1", 1, "ended", "wrk-1", "failed", error, None, None, 31.5, 256, NOW, NOW, LATER, steps
    )
    found = wire.InvocationDetail(invocation("FAILED", error=error), "[[1], {}]", [execution])
    plane.on("GET", "/v1/invocations/inv-1/detail", found)
    out = cli("describe", "inv-1").out
    assert "Attempt 1  failed after 1.5 s  exe-1 on wrk-1" in out
    assert "12.5 ms  started" in out
    assert "peak memory 31.5 MiB of 256 MiB" in out
    assert "ValueError: bad bound" in out


# --- invoking ---


@pytest.fixture
def invokable(plane):
    plane.on("GET", LATEST, version())
    plane.on("POST", STARTS, wire.StartAnswer(["inv-1"]))
    plane.on("GET", "/v1/invocations/inv-1", invocation())
    plane.on("GET", "/v1/invocations/inv-1/values", wire.ValuesAnswer([], ended=True))
    plane.on("GET", "/v1/invocations/inv-1/logs", Lines())
    return plane


def test_invoke_prints_the_result_alone_on_stdout(cli, invokable):
    outcome = cli("invoke", "billing/add", "1", "b=2")
    assert (outcome.code, outcome.out) == (0, "3\n")
    assert outcome.err.splitlines()[-1] == "SUCCEEDED  inv-1  ran 1.5 s, waited 0 ms"


def test_invoke_tells_values_and_output_as_they_come(cli, invokable):
    values = wire.ValuesAnswer([wire.Value(1, '{"done": 1}')], ended=True)
    records = Lines(wire.LogRecord(NOW, "stdout", "one\ntw"), wire.LogRecord(NOW, "stdout", "o\n"))
    invokable.on("GET", "/v1/invocations/inv-1/values", values)
    invokable.on("GET", "/v1/invocations/inv-1/logs", records)
    said = cli("invoke", "billing/add", "1", "2").err.splitlines()
    assert 'value 1: {"done": 1}' in said
    assert [line for line in said if line.startswith("|")] == ["| one", "| two"]


def test_invoke_values_are_json_where_they_parse(cli, invokable):
    cli("invoke", "billing/add", "[1, 2]", "b=x y", "--detach")
    (body,) = invokable.bodies("POST", STARTS)
    assert json.loads(body["inputs"][0]) == [{"py/tuple": [[1, 2]]}, {"b": "x y"}]


def test_invoke_takes_negative_numbers_and_input_files(cli, invokable, tmp_path):
    assert cli("invoke", "billing/add", "-1", "-2.5", "-d").out == "inv-1\n"
    (tmp_path / "input.json").write_text('[[1], {"b": 2}]')
    cli("invoke", "billing/add", "--input", "input.json", "-d")
    inputs = [json.loads(body["inputs"][0]) for body in invokable.bodies("POST", STARTS)]
    assert inputs == [
        [{"py/tuple": [-1, -2.5]}, {}],
        [{"py/tuple": [1]}, {"b": 2}],
    ]


def test_invoke_with_long_flags_takes_all_words_as_arguments(cli, invokable):
    outcome = cli("invoke", "1", "2", "--project-name", "billing", "--function-name", "add", "-d")
    assert outcome.code == 0, outcome.err
    assert json.loads(invokable.bodies("POST", STARTS)[0]["inputs"][0]) == [
        {"py/tuple": [1, 2]},
        {},
    ]


def test_invoke_of_a_failing_function_exits_with_1(cli, invokable):
    error = wire.FunctionError(
        "ValueError: bad", "ValueError", "Traceback (most recent call last):\nValueError: bad"
    )
    invokable.on("GET", "/v1/invocations/inv-1", invocation("FAILED", error=error))
    outcome = cli("invoke", "billing/add", "1", "2")
    assert (outcome.code, outcome.out) == (1, "")
    assert "Traceback (most recent call last):" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("FAILED  inv-1")


def test_invoke_json_prints_the_ended_invocation_once(cli, invokable):
    outcome = cli("invoke", "billing/add", "1", "2", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    data = outcome.json["data"]
    assert (data["status"], data["result"], data["error"]) == ("SUCCEEDED", 3, None)
    invokable.on(
        "GET", "/v1/invocations/inv-1", invocation("FAILED", error=wire.FunctionError("x"))
    )
    outcome = cli("invoke", "billing/add", "1", "2", "--json")
    assert (outcome.code, outcome.json["ok"]) == (1, False)
    assert outcome.json["data"]["error"] == {"message": "x", "type": "", "traceback": ""}


# --- invocations ---


def test_ps_says_why_a_pending_one_is_not_running(cli, plane):
    item = wire.InvocationItem(
        "inv-1", "billing", "add", "ver-1", "PENDING", "retry in 8 s", 1, NOW, None, None
    )
    pages = iter([wire.InvocationList([item], "next"), wire.InvocationList([item], None)])
    plane.on("GET", "/v1/invocations", lambda request: next(pages))
    outcome = cli("ps")
    assert outcome.out.count("retry in 8 s") == 2
    assert plane.requests[0].query == {"in_flight": "true"}
    assert plane.requests[1].query == {"in_flight": "true", "offset": "next"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "Nothing is in flight"),
        (("-a",), "There is none"),
        (("--status", "failed"), "There is"),
    ],
)
def test_ps_says_of_what_there_is_none(cli, plane, words, said):
    plane.on("GET", "/v1/invocations", wire.InvocationList([], None))
    assert said in cli("ps", *words).err


def test_logs_are_printed_as_they_are(cli, plane):
    records = Lines(wire.LogRecord(NOW, "stdout", "a\nb"), wire.LogRecord(NOW, "stderr", "c\n"))
    plane.on("GET", "/v1/invocations/inv-1/logs", records)
    assert cli("logs", "inv-1", "--since", "10m", "--attempt", "2").out == "a\nbc\n"
    assert plane.requests[0].query == {"tail": "100", "since_s": "600.0", "attempt": "2"}
    assert len(cli("logs", "inv-1", "-f", "--json").out.splitlines()) == 2
    assert len(cli("logs", "inv-1", "--json").json["data"]) == 2
    assert cli("logs", "inv-1", "-t").out.splitlines()[0] == f"{NOW}  a"


def attempt_2():
    execution = wire.ExecutionInfo(
        "exe-2", 2, "ended", "wrk-1", "succeeded", None, None, None, 31.5, 256, NOW, NOW, LATER, []
    )
    return wire.InvocationDetail(invocation(), "[[1, 2], {}]", [execution])


def test_execution_id_alone_names_one_attempt(cli, plane):
    plane.on("GET", "/v1/executions/exe-2", attempt_2())
    plane.on("GET", "/v1/invocations/inv-1/logs", Lines(wire.LogRecord(NOW, "stdout", "two\n", 2)))
    assert cli("logs", "--execution-id", "exe-2").out == "two\n"
    assert plane.requests[-1].query["attempt"] == "2"
    described = cli("describe", "--execution-id", "exe-2").out
    assert "inv-1  SUCCEEDED" in described
    assert "Attempt 2  succeeded after 1.5 s  exe-2 on wrk-1" in described
    (item,) = cli("describe", "--execution-id", "exe-2", "--json").json["data"]["executions"]
    assert item["execution_id"] == "exe-2"


def test_execution_id_must_agree_with_what_else_is_named(cli, plane):
    plane.on("GET", "/v1/executions/exe-2", attempt_2())
    for words in (("describe", "inv-1"), ("logs", "--invocation-id", "inv-1")):
        plane.on("GET", "/v1/invocations/inv-1/logs", Lines())
        assert cli(*words, "--execution-id", "exe-2").code == 0
    for words in (("describe", "inv-9"), ("logs", "inv-9")):
        outcome = cli(*words, "--execution-id", "exe-2")
        assert (outcome.code, outcome.out) == (2, "")
        assert "exe-2 is no attempt of inv-9." in outcome.err
    outcome = cli("logs", "--execution-id", "exe-2", "--attempt", "1")
    assert (outcome.code, outcome.out) == (2, "")
    assert "exe-2 is attempt 2" in outcome.err


def test_an_execution_that_is_not_there(cli, plane):
    plane.on("GET", "/v1/executions/exe-9", Refusal(404, "execution_not_found", "None."))
    assert cli("logs", "--execution-id", "exe-9").code == 3


def test_result_of_every_kind_of_invocation(cli, plane):
    path = "/v1/invocations/inv-1"
    plane.on("GET", path, invocation(result='"text"'))
    assert cli("result", "inv-1").out == "text\n"
    plane.on("GET", path, invocation("RUNNING", result="7"))
    assert cli("result", "inv-1").out == "7\n"
    plane.on("GET", path, invocation("RUNNING"))
    assert cli("result", "inv-1").code == 1
    plane.on("GET", path, invocation("CANCELLED"))
    assert "was CANCELLED" in cli("result", "inv-1").err
    assert (
        cli("result", "--invocation-id", "inv-1", "--json").json["error"]["code"]
        == "invocation_cancelled"
    )


def test_cancel_is_one_request(cli, plane):
    plane.on("POST", "/v1/cancel", wire.CancelAnswer(["inv-1"], ["inv-2"]))
    outcome = cli("cancel", "inv-1", "inv-2")
    assert outcome.code == 0
    assert "inv-2  had ended already" in outcome.out
    cli("cancel", "billing/add", "--all")
    first, second = plane.bodies("POST", "/v1/cancel")
    assert first["invocation_ids"] == ["inv-1", "inv-2"]
    assert (second["project"], second["function"]) == ("billing", "add")


def test_retry_prints_the_new_id(cli, plane):
    plane.on("POST", "/v1/invocations/inv-1/retry", wire.StartAnswer(["inv-2"]))
    assert cli("retry", "inv-1").out == "inv-2\n"


# --- run ---


def test_run_needs_no_control_plane(cli, project, monkeypatch):
    import sys

    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "main", raising=False)
    project()
    outcome = cli("run", "add", "1", "b=2")
    monkeypatch.delitem(sys.modules, "main", raising=False)
    assert (outcome.code, outcome.out) == (0, "3\n")


# --- access ---


def test_login_checks_the_key_and_stores_it_for_this_user(cli, plane, monkeypatch, tmp_path):
    import io
    import os
    from pathlib import Path

    url = plane.url
    monkeypatch.delenv("MULTINODE_API_URL")
    monkeypatch.delenv("MULTINODE_API_KEY")
    plane.on("GET", "/v1/server", server_info(key_name="ci", role="deploy"))
    plane.on("GET", "/v1/projects", [])
    monkeypatch.setattr("sys.stdin", io.StringIO("key-2\n"))
    outcome = cli("login", url, "--profile", "team")
    assert outcome.code == 0, outcome.err
    assert "key-2" not in outcome.out + outcome.err
    path = Path(os.environ["MULTINODE_HOME"]) / "credentials.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert cli("list").code == 0
    assert cli("profile", "list").out.splitlines()[1] == f"*  team     {url}"
    assert cli("logout").out == "Profile 'team' is gone.\n"
    assert cli("profile", "use", "team").code == 3


def test_login_with_a_wrong_key_stores_nothing(cli, plane, monkeypatch):
    import io
    import os
    from pathlib import Path

    plane.on("GET", "/v1/server", Refusal(401, "not_logged_in", "The key is unknown."))
    monkeypatch.setattr("sys.stdin", io.StringIO("wrong\n"))
    assert cli("login", plane.url, "--key-stdin").code == 4
    assert not (Path(os.environ["MULTINODE_HOME"]) / "credentials.json").exists()


def test_a_key_is_shown_once_alone_on_stdout(cli, plane):
    plane.on("POST", "/v1/keys", wire.KeyInfo("ci", "deploy", NOW, None, "mnk-1"))
    assert cli("key", "create", "ci", "--role", "deploy").out == "mnk-1\n"


def test_a_key_for_one_project_is_told_as_such(cli, plane):
    made = wire.KeyInfo("ci", "deploy", NOW, None, "mnk-1", "shop")
    plane.on("POST", "/v1/keys", made)
    outcome = cli("key", "create", "ci", "--role", "deploy", "--project", "shop")
    assert [body["project"] for body in plane.bodies("POST", "/v1/keys")] == ["shop"]
    assert "Key 'ci' (deploy, for the project 'shop' alone)" in outcome.err
    plane.on("GET", "/v1/keys", [made.replace(key=None), wire.KeyInfo("ada", "read", NOW)])
    assert [line.split()[:3] for line in cli("key", "list").out.splitlines()[-2:]] == [
        ["ci", "deploy", "shop"],
        ["ada", "read", "all"],
    ]
    assert cli("key", "create", "ci", "--role", "deploy", "--json").json["data"]["key"] == "mnk-1"
    plane.on("GET", "/v1/keys", [wire.KeyInfo("ci", "deploy", NOW, NOW)])
    assert "revoked" in cli("key", "list").out


# --- init, doctor, help ---


@pytest.mark.parametrize("template", ["hello", "progress", "parallel"])
def test_init_writes_a_project_in_which_nothing_is_wrong(cli, template):
    outcome = cli("init", "My App", "--template", template, "--json")
    data = outcome.json["data"]
    assert data["project"] == "my-app"
    assert {
        "multinode.toml",
        "tasks/main.py",
        "tasks/.env",
        "tasks/requirements.txt",
        "application/main.py",
    } <= set(data["written"])
    assert {"tasks/submodule/__init__.py", "tasks/submodule/file_1.py"} <= set(data["written"])
    checked = cli("check", "My App", "--json")
    assert checked.code == 0, checked.out
    assert len(checked.json["data"]["functions"]) >= 2


def test_init_touches_no_file_that_exists(cli, tmp_path):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/main.py").write_text("mine\n")
    outcome = cli("init")
    assert "tasks/main.py  (was there, and is as it was)" in outcome.out
    assert (tmp_path / "tasks/main.py").read_text() == "mine\n"


def test_doctor_changes_nothing_and_names_cures(cli, plane):
    plane.on("GET", "/v1/server", server_info(clock="2020-01-01T00:00:00+00:00"))
    outcome = cli("doctor", "--json")
    states = {item["check"]: item["state"] for item in outcome.json["data"]}
    assert outcome.code == 1
    assert (states["Python"], states["credentials"], states["clock"]) == ("ok", "ok", "FAIL")


def test_doctor_says_what_is_not_enforced_and_why(cli, plane):
    info = server_info(enforces=["memory"], unenforced_reason="the cgroup /x has no cpu")
    plane.on("GET", "/v1/server", info)
    (runner,) = (item for item in cli("doctor", "--json").json["data"] if item["check"] == "runner")
    assert runner["state"] == "note"
    assert runner["finding"] == "process, does not enforce cpu: the cgroup /x has no cpu"


def test_every_command_has_help_with_an_example():
    found = command_tree.commands()
    assert len(found) >= 28
    for words, command in found.items():
        assert f"Example: multinode {words}" in command.help, words
        assert {"--profile", "--debug"} <= {
            option for item in command.params for option in item.opts
        }
