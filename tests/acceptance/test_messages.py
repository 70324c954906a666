"""Everything bad whose message comes from a real control plane: what it says, and that nothing was changed.

``tests/snapshots/messages.txt`` has the texts, beside those that need none (``tests/cli/test_messages.py``).
"""

import re

import pytest
from tests.acceptance.product import HERE, Product

from multinode import errors, get_deployed_function, wire
from multinode_cli.commands import run

HEAD = "from multinode import Multinode\n\nmn = Multinode()\n\n\n"
ADD = "@mn.function()\ndef add(a, b):\n    return a + b\n"
MAIN = f"""{HEAD}class Own:
    pass


{ADD}

@mn.function()
def give(kind):
    if kind == "a lambda":
        return lambda: 1
    if kind == "a long text":
        return "x" * 250_000
    if kind == "a class of its own":
        return Own()
    raise ValueError(f"there is no {{kind}}")
"""


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
    """A control plane with one version of one project, and keys."""
    made = Product(tmp_path_factory.mktemp("plane"))
    made.write({"tasks/main.py": MAIN})
    made.run("server", "start", "--port", "0", "--capacity", "cpu=4,memory=4GiB")
    try:
        made.run("deploy")
        made.keys = {
            role: made.json("key", "create", f"the-{role}-key", "--role", role)["key"]
            for role in ("read", "invoke")
        }
        made.keys["revoked"] = made.json("key", "create", "old", "--role", "admin")["key"]
        made.run("key", "revoke", "old")
        made.invocation = made.json("invoke", "add", "1", "2")["invocation_id"]
        yield made
    finally:
        made.run("server", "stop", "--now")


@pytest.fixture(autouse=True)
def home(plane, monkeypatch):
    """Commands and SDK calls of the test go to that control plane."""
    monkeypatch.setenv("MULTINODE_HOME", str(plane.folder / "home"))
    monkeypatch.chdir(plane.folder)


@pytest.fixture(autouse=True)
def _nothing_changed(plane, home):
    def state():
        client = plane.client()
        projects = client.call(list[wire.ProjectInfo], "GET", "/v1/projects")
        versions = client.call(wire.ProjectDetail, "GET", "/v1/projects/shop").versions
        keys = client.call(list[wire.KeyInfo], "GET", "/v1/keys")
        client.close()
        return [item.project for item in projects], versions, keys

    before = state()
    yield
    assert state() == before


@pytest.fixture
def check(plane, messages, capsys):
    """Runs a command, and compares what it says last with the snapshot."""

    def checked(name, *argv, steady=lambda text: text):
        code = run(list(argv))
        said = capsys.readouterr()
        assert said.out == ""
        told = steady(said.err[re.search("(?m)^error: ", said.err).start() :])
        pairs = [
            (plane.server["url"], "http://example.com"),
            (plane.folder, "/path/to"),
            (f"Python {HERE}", "Python 3.11"),
            (f"pid {plane.server['pid']}", "pid 1"),
        ]
        messages.check(name, map(_steady, argv), code, _steady(told), replace=pairs)

    return checked


@pytest.fixture
def check_raised(messages):
    """Calls something of the SDK, and compares what it raises with the snapshot."""

    def checked(name, call, **names):
        with pytest.raises(errors.MultinodeError) as raised:
            eval(call, names)
        error = type(raised.value)(_steady(raised.value.message), _steady(raised.value.hint))
        messages.check_raised(name, _steady(call), error)

    return checked


def _steady(text):
    """``text`` with ids that differ from run to run as ``inv-…``, and without the marks that some Pythons put
    below a traceback's lines."""
    return re.sub(r"\b(inv|ver)-[0-9a-f]{24,}", r"\1-…", re.sub(r"(?m)^ +[~^]+\n", "", text))


# --- what there is not ----------------------------------------------------------------------------------

UNKNOWN = {
    "unknown: project": ("describe", "shopp"),
    "unknown: project, nothing near": ("describe", "warehouse"),
    "unknown: project to undeploy": ("undeploy", "shopp", "-y"),
    "unknown: function": ("describe", "shop/ad"),
    "unknown: function, nothing near": ("describe", "shop/multiply"),
    "unknown: function to invoke": ("invoke", "shop/gibe", "1"),
    "unknown: function to cancel": ("cancel", "shop/ad", "--all"),
    "unknown: version by number": ("invoke", "shop/add@7", "1", "2"),
    "unknown: version by id": ("rollback", "shop", "ver-1"),
    "unknown: version before the first": ("rollback", "shop"),
    "unknown: invocation": ("result", "inv-1"),
    "unknown: invocation to cancel": ("cancel", "inv-1"),
    "unknown: invocation to retry": ("retry", "inv-1"),
    "unknown: key": ("key", "revoke", "the-key"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_there_is_not(name, check):
    check(name, *UNKNOWN[name])


def test_ids_that_were_cut_off_name_the_whole_ones(plane, check):
    version = plane.json("describe", "shop")["project"]["latest_version_id"]
    check("unknown: version, its id cut off", "rollback", "shop", version[:-2])
    check("unknown: invocation, its id cut off", "logs", plane.invocation[:-2])


def test_an_attempt_that_there_was_not(plane, check):
    check("unknown: attempt", "logs", plane.invocation, "--attempt", "9")


# --- deploys --------------------------------------------------------------------------------------------

HELPER = "def load():\n    raise ValueError('there is no configuration')\n\n\nCONFIG = load()\n"
DEPLOYS = {
    "deploy: a requirement that does not exist": {
        "tasks/requirements.txt": "jsonpickle\nno-such-package-of-multinode==1.0\n"
    },
    "deploy: requirements that contradict the SDK's": {"tasks/requirements.txt": "httpx<0.20\n"},
    "deploy: an import that fails": {
        "tasks/main.py": "from sub.helper import CONFIG\n" + HEAD + ADD,
        "tasks/sub/helper.py": HELPER,
    },
    "deploy: an import of what is not installed": {"tasks/main.py": "import numpie\n" + HEAD + ADD},
    "deploy: an import that ends the interpreter": {
        "tasks/main.py": HEAD + ADD + "import os; os._exit(3)\n"
    },
    "deploy: a setting that only the import knows": {
        "tasks/main.py": HEAD + "SIZE = '1 TB'\n" + ADD.replace("()", "(memory=SIZE)", 1)
    },
    "deploy: two functions of one name that only the import knows": {
        "tasks/main.py": HEAD + ADD + "again = add.func\nmn.function()(again)\n"
    },
    "deploy: more memory than there is room": {
        "tasks/main.py": HEAD + ADD.replace("()", "(memory='5 GiB')", 1)
    },
}


@pytest.fixture
def tasks(plane, tmp_path, monkeypatch):
    """Another folder with the same project, written by the test."""
    folder = Product(tmp_path)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize("name", DEPLOYS)
def test_deploys_that_cannot_be(name, tasks, check):
    tasks.write({"tasks/main.py": MAIN, **DEPLOYS[name]})
    check(name, "deploy", steady=_without_uvs_words)


def test_a_requirement_that_does_not_fit_the_python(tasks, check):
    tasks.write({"tasks/main.py": MAIN, "tasks/requirements.txt": "numpy==1.26.1\n"}, python="3.8")
    name = "deploy: a requirement that does not fit the Python"
    check(name, "deploy", steady=_without_uvs_words)


def test_a_syntax_that_the_environment_lacks(tasks, check, oldest):
    late = "import importlib\nimportlib.import_module('late')\n"  # where `check` does not look
    files = {
        "tasks/main.py": HEAD + ADD + late,
        "tasks/late.py": "match 1:\n    case 1:\n        pass\n",
    }
    tasks.write(files, python="3.8")
    check("deploy: a syntax that the environment's Python lacks", "deploy")


def test_a_python_that_there_is_not(tasks, check):
    tasks.write({"tasks/main.py": MAIN}, python="3.99")

    def steady(text):
        return re.sub(r"Here are: [\d., ]+\d\.", "Here are: 3.8.18, 3.12.1.", text)

    check("deploy: a Python that there is not", "deploy", steady=steady)


def test_upgrade_of_a_project_that_there_is_not(tasks, check):
    tasks.write({"tasks/main.py": MAIN}, project="shopp")
    check("deploy: upgrade of a project that there is not", "upgrade")


def _without_uvs_words(text):
    """uv's own words are its release's."""
    return re.sub(r"(?s)(uv says:\n).*", r"\1…", text)


# --- keys -----------------------------------------------------------------------------------------------

KEYS = {
    "key: wrong": ("wrong", ("list",)),
    "key: revoked": ("revoked", ("list",)),
    "key: its role too small to invoke": ("read", ("invoke", "shop/add", "1", "2")),
    "key: its role too small to deploy": ("invoke", ("deploy",)),
    "key: its role too small to undeploy": ("invoke", ("undeploy", "shop", "-y")),
    "key: its role too small for keys": ("invoke", ("key", "list")),
}


@pytest.mark.parametrize("name", KEYS)
def test_keys_that_will_not_do(name, plane, check, monkeypatch):
    kind, argv = KEYS[name]
    monkeypatch.setenv("MULTINODE_API_URL", plane.server["url"])
    monkeypatch.setenv("MULTINODE_API_KEY", plane.keys.get(kind, "mnk_wrong"))
    check(name, *argv)


def test_keys_that_cannot_be_made(check):
    check("key: a name that is in use", "key", "create", "the-read-key", "--role", "read")
    check("key: a name with other characters", "key", "create", "the key", "--role", "read")


# --- the server's options -------------------------------------------------------------------------------

SERVER = {
    "server: a port beyond the last": ("--port", "65536"),
    "server: a runner that there is not": ("--runner", "podman"),
    "server: a capacity that cannot be read": ("--capacity", "4 cores"),
    "server: a database that cannot be": ("--database", "mysql://me:secret@db/multinode"),
    "server: a key in place of where it is": ("--secret-key-from", "hunter2"),
    "server: a ring in a folder that is not there": ("--secret-key-from", "file:/nowhere/ring"),
    "server: a variable with keys that is not set": ("--secret-key-from", "env:NOT_SET"),
    "server: a registry that cannot be": ("--registry", "https://r.example/mn"),
    "server: a repository of AWS that cannot be": ("--registry", "ecr:Team"),
    "server: a user for a repository of AWS": (
        "--registry",
        "ecr:mn",
        "--registry-username",
        "AWS",
    ),
    "server: functions as this user, for others": ("--host", "0.0.0.0", "--runner", "process"),
    "server: plain HTTP for others": ("--host", "0.0.0.0", "--runner", "docker"),
}


@pytest.fixture
def other_home(tmp_path, monkeypatch):
    """Where no control plane runs, and none is left running that was not to start."""
    folder = tmp_path / "other"
    monkeypatch.setenv("MULTINODE_HOME", str(folder))
    yield
    if (folder / "server.json").exists():
        run(["server", "stop", "--now"])


@pytest.mark.parametrize("name", SERVER)
def test_servers_that_cannot_start(name, check, other_home):
    check(name, "server", "start", *SERVER[name])


def test_a_port_in_use(plane, messages, check, other_home, tmp_path):
    port = plane.server["url"].rpartition(":")[2]
    other = Product(tmp_path)
    for verb in ("start", "run"):
        argv = ["server", verb, "--port", port]
        done = other.call(*argv)
        name = f"server: a port in use, {verb}"
        messages.check(name, argv, done.returncode, done.stderr, replace=[(port, "9470")])


def test_a_data_folder_in_use(plane, check, other_home, sqlite_store):
    # Of a shared database more than one control plane uses the folder.
    data = str(plane.folder / "home" / "server")
    check("server: a data folder in use", "server", "start", "--data-dir", data)


# --- calls ----------------------------------------------------------------------------------------------

CALLS = {
    "sdk: unknown project": "deployed('shopp', 'add').start(1, 2)",
    "sdk: unknown function": "deployed('shop', 'ad').start(1, 2)",
    "sdk: unknown version": "deployed('shop', 'add', 'ver-1').start(1, 2)",
    "sdk: unknown invocation": "deployed('shop', 'add').get('inv-1')",
    "sdk: one argument missing": "deployed('shop', 'add').start(1)",
    "sdk: too many arguments": "deployed('shop', 'add').start(1, 2, 3)",
    "sdk: unknown keyword": "deployed('shop', 'add').start(1, c=2)",
    "sdk: one item of a map does not fit": "list(deployed('shop', 'add').starmap([(1,)]))",
    "sdk: an argument that cannot be encoded": "deployed('shop', 'add').start(1, b=open('/dev/null'))",
    "sdk: arguments that are too long": "deployed('shop', 'add').start('x' * 250_000, 'y')",
    "sdk: an unknown status": "deployed('shop', 'add').list(status='DONE')",
}


def deployed(project, function, version_id=None):
    return get_deployed_function(
        project_name=project, function_name=function, version_id=version_id
    )


@pytest.mark.parametrize("name", CALLS)
def test_calls_that_cannot_be(name, plane, check_raised):
    client = plane.client()
    before = client.call(wire.InvocationList, "GET", "/v1/invocations?project=shop")
    with open("/dev/null") as file:
        check_raised(name, CALLS[name], deployed=deployed, open=lambda _: file)
    after = client.call(wire.InvocationList, "GET", "/v1/invocations?project=shop")
    client.close()
    assert [item.invocation_id for item in after.invocations] == [
        item.invocation_id for item in before.invocations
    ]


@pytest.mark.parametrize("kind", ["a lambda", "a long text", "a class of its own", "nothing"])
def test_results_that_cannot_be_had(kind, check_raised):
    call = f"deployed('shop', 'give').call_remote({kind!r})"
    check_raised(f"sdk: a result that is {kind}", call, deployed=deployed)


def test_a_result_that_cannot_be_had_at_the_terminal(plane, check):
    failed = plane.run("invoke", "give", "a lambda", "--detach").strip()
    plane.run("logs", failed, "--follow")
    check("result: of a function that failed", "result", failed)
