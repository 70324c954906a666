"""What an invocation changes of its process is put back before the next one, or the worker is replaced."""

import os

import pytest

STATE = """
def state():
    return {
        "env": {name: text for name, text in os.environ.items() if name != "MARK"},
        "cwd": os.getcwd(),
        "files": sorted(os.listdir()),
        "handlers": [str(signal.getsignal(n)) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM, signal.SIGINT)],
        "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "umask": os.umask(0o22),
        "alarm": signal.getitimer(signal.ITIMER_REAL),
        "profile": signal.getitimer(signal.ITIMER_PROF),
        "streams": [sys.stdin is sys.__stdin__, sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__],
        "zone": time.tzname[0],
        "context": variable.get(),
        "threads": threading.active_count(),
        "data": os.path.islink("data") and open("data/text.txt").read(),
        "own": open("own.txt").read() if os.path.exists("own.txt") else None,
    }

import contextvars, io
variable = contextvars.ContextVar("variable", default="none")
with open("own.txt", "w") as file:
    file.write("of the import")

@mn.function()
def f(act):
    if act == "look":
        return [os.getpid(), state()]
    before = state()
    exec(act, globals())
    return [os.getpid(), before]
"""


def serve(bench, act, **more):
    """What the next invocation of the same worker sees, after one that has done ``act``; what that one saw; whether it was the same process."""
    run = bench.run(
        STATE, act, max_invocations=0, files={"data/text.txt": "text"}, dotenv={"KEPT": "1"}, **more
    )
    pid, before = run.result()
    run.wait_asking(2)
    later, after = run.hand("look").result()
    assert later == pid
    return before, after


@pytest.mark.parametrize(
    "act",
    [
        "os.environ['NEW'] = '1'",
        "del os.environ['KEPT']",
        "os.environ['KEPT'] = '2'",
        "os.environ.clear()",
        "os.environ = {}",
        "os.environ['TZ'] = 'ABC-3'; time.tzset()",
        "os.chdir('/')",
        "open('new.txt', 'w').close()",
        "os.makedirs('a/b'); open('a/b/c', 'w').close()",
        "os.makedirs('a/b'); os.chmod('a', 0o500)",
        "os.unlink('data')",
        "os.unlink('data'); os.mkdir('data'); open('data/text.txt', 'w').write('other')",
        "os.unlink('data'); os.symlink('/etc', 'data')",
        "os.symlink('/etc', 'etc')",
        "os.mkfifo('pipe')",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        "signal.signal(signal.SIGUSR1, lambda *_: None)",
        "signal.signal(signal.SIGINT, signal.SIG_DFL)",
        "signal.signal(signal.SIGUSR2, signal.SIG_IGN)",
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1])",
        "os.umask(0)",
        "signal.alarm(60)",
        "signal.setitimer(signal.ITIMER_PROF, 60)",
        "signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05); signal.signal(signal.SIGALRM, lambda *_: None)",
        "sys.stdout = io.StringIO()",
        "sys.stdin = sys.stderr = None",
        "variable.set('mine')",
        "subprocess.Popen(['sleep', '60'])",
        "subprocess.Popen(['setsid', 'sh', '-c', 'sleep 60 & sleep 60'])",
        "subprocess.run(['sh', '-c', 'setsid sleep 60 & exit'])",
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN); subprocess.Popen(['sleep', '60'])",
        "threading.Thread(target=time.sleep, args=(0.01,)).start()",
    ],
)
def test_what_was_changed_is_put_back(bench, act):
    before, after = serve(bench, act)
    assert after == before
    assert after["data"] == "text"
    assert after["own"] == "of the import"


def test_processes_that_were_left_are_gone(bench):
    source = """
    @mn.function()
    def f(is_first):
        if is_first:
            shell = subprocess.Popen(["setsid", "sh", "-c", "sleep 60 & echo $!; sleep 60"], stdout=subprocess.PIPE)
            return [shell.pid, int(shell.stdout.readline())]
    """
    run = bench.run(source, True, max_invocations=0)
    pids = run.result()
    run.wait_asking(2)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert run.hand(False).end().outcome == "succeeded"


def test_process_that_main_py_has_started_stays(bench):
    source = """
    kept = subprocess.Popen(["sleep", "60"])
    apart = subprocess.run(["sh", "-c", "setsid sleep 61 >/dev/null 2>&1 & echo $!"], stdout=subprocess.PIPE)

    @mn.function()
    def f():
        os.kill(int(apart.stdout), 0)
        return kept.poll()
    """
    run = bench.run(source, max_invocations=0)
    assert run.result() is None
    assert run.hand().result() is None
    assert run.hand().result() is None


def test_event_loop_of_each_invocation_is_its_own(bench):
    source = """
    async def forgotten():
        await asyncio.sleep(60)

    @mn.function()
    async def f():
        task = asyncio.ensure_future(forgotten())
        await asyncio.sleep(0)
        await asyncio.get_running_loop().run_in_executor(None, time.sleep, 0)
        return [os.getpid(), len(asyncio.all_tasks())]
    """
    run = bench.run(source, max_invocations=0)
    first = run.result()
    assert first[1] == 2
    assert run.hand().result() == first


def test_late_alarm_does_not_reach_the_next_invocation(bench):
    source = """
    def rung(*_): raise RuntimeError("late")

    @mn.function()
    def f(is_first):
        if is_first:
            signal.signal(signal.SIGALRM, rung)
            signal.setitimer(signal.ITIMER_REAL, 0.1)
        else:
            time.sleep(0.3)
        return os.getpid()
    """
    run = bench.run(source, True, max_invocations=0)
    assert run.hand(False).result() == run.result()


def test_module_globals_stay(bench):
    source = "seen = []\n@mn.function()\ndef f(n):\n    seen.append(n)\n    return seen"
    run = bench.run(source, 1, max_invocations=2)
    assert run.hand(2).result() == [1, 2]


def test_peak_memory_is_that_of_the_invocation(bench):
    source = "@mn.function()\ndef f(mib): len(bytearray(mib * 1024 * 1024))"
    run = bench.run(source, 200, max_invocations=2)
    second = run.hand(1)
    assert run.end().peak_memory_bytes > 200 * 1024**2
    assert second.end().peak_memory_bytes < 100 * 1024**2


@pytest.mark.parametrize(
    ("act", "why"),
    [
        ("threading.Thread(target=time.sleep, args=(60,), daemon=True, name='poller').start()", "1 thread running: poller"),
        ("os.close(1)", "standard stream"),
        ("sys.stdout.close()", "closed a standard stream"),
        ("os.dup2(os.open('/dev/null', os.O_WRONLY), 2)", "standard stream"),
        ("os.unlink('own.txt')", "removed 'own.txt'"),
        ("os.rename(os.getcwd(), os.getcwd() + 'x'); os.mkdir(os.getcwd()[:-1]); os.rmdir(os.getcwd()[:-1]); os.rename(os.getcwd(), os.getcwd()[:-1] + 'y'); import shutil; shutil.rmtree(os.getcwd())", "FileNotFoundError"),
        ("kept.kill(); kept.wait()", "a process that main.py had started is gone"),
    ],
)  # fmt: skip
def test_worker_that_cannot_be_put_back_is_replaced(bench, act, why):
    source = f"kept = subprocess.Popen(['sleep', '60'])\n{STATE}"
    run = bench.run(source, act, max_invocations=0)
    assert run.end().outcome == "succeeded"
    assert run.gone() == 0
    assert run.record.nexts == []
    assert "Its worker is replaced, not used again" in run.log("system")
    assert why in run.log("system")


def test_worker_that_does_not_come_to_rest_is_replaced(bench):
    source = """
    @mn.function()
    async def f():
        asyncio.get_running_loop().run_in_executor(None, time.sleep, 30)
        await asyncio.sleep(0.1)
    """
    run = bench.run(source, max_invocations=0)
    assert run.end().outcome == "succeeded"
    assert run.gone() == 0
    assert "replaced" in run.log("system")


def test_end_of_a_worker_that_dies_when_it_comes_to_rest_is_what_it_was(bench):
    source = """
    class Late:
        def __del__(self): os._exit(3)

    @mn.function()
    async def f():
        asyncio.get_running_loop().late = Late()
        return 7
    """
    run = bench.run(source, max_invocations=0)
    assert run.result() == 7
    assert run.gone() == 0
