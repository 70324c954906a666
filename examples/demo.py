"""What `make demo` shows: start a control plane, deploy, invoke, watch the progress, read the logs. Nothing is hidden:

each command is printed as one would type it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMAND = Path(sys.executable).with_name("multinode")


def main() -> int:
    """Runs the demo; the exit code is 0 where every command worked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runner", default="process")
    options = parser.parse_args()
    os.environ["MULTINODE_HOME"] = str(ROOT / ".demo")
    os.environ["MULTINODE_RUNNER"] = options.runner
    for name in ("MULTINODE_API_URL", "MULTINODE_API_KEY"):
        os.environ.pop(name, None)
    try:
        show("deploy", "examples/founding/tasks")
        show("invoke", "founding/slowly_calculate_sum_of_squares", "bound=3")
        show("invoke", "founding/slowly_calculate_with_progress", "bound=3")
        show("deploy", "examples/numbers/tasks")
        show("invoke", "numbers/largest_eigenvalue", "size=200")
        invocation_id = read(
            "invoke", "founding/run_function_that_terminates_gracefully", "60", "--detach"
        )
        wait_until_running(invocation_id)
        show("cancel", invocation_id)
        show("logs", invocation_id, "--follow")
        if (
            options.runner == "process"
        ):  # its second attempt looks for a file of the first; a container's goes with it
            show("invoke", "founding/flaky", str(ROOT / ".demo" / "tried"))
        else:  # a system package needs an image
            show("deploy", "examples/labels/tasks")
            show("invoke", "labels/qr_code", "text=Multinode")
        show("ps", "-a")
    except subprocess.CalledProcessError as error:
        print(
            f"\nThe demo stopped: `{' '.join(map(str, error.cmd))}` ended with {error.returncode}.",
            file=sys.stderr,
        )
        return 1
    finally:
        subprocess.run(
            [COMMAND, "server", "stop", "--now"], check=False, cwd=ROOT, stderr=subprocess.DEVNULL
        )
    print(NEXT)
    return 0


def show(*arguments: str) -> None:
    """Prints the command, then runs it. Raises CalledProcessError where it fails."""
    print(f"\n$ multinode {' '.join(arguments)}", flush=True)
    subprocess.run([COMMAND, *arguments], check=True, cwd=ROOT)


def read(*arguments: str) -> str:
    """Prints the command and its output, and returns that."""
    print(f"\n$ multinode {' '.join(arguments)}", flush=True)
    done = subprocess.run(
        [COMMAND, *arguments], check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    print(done.stdout, end="", flush=True)
    return done.stdout.strip()


def wait_until_running(invocation_id: str) -> None:
    """Waits until the invocation has left PENDING, with the SDK's own waiting request."""
    from multinode import settings, wire
    from multinode.client import client_for

    client = client_for(settings.resolve())
    info = client.call(wire.InvocationInfo, "GET", f"/v1/invocations/{invocation_id}")
    while info.status == wire.PENDING:
        path = f"/v1/invocations/{invocation_id}?wait_s=25&revision={info.revision}"
        info = client.call(wire.InvocationInfo, "GET", path, wait_s=25)


NEXT = """
That was all of it: SUCCEEDED functions, their progress, a cancellation that cleaned up.
Try next, with the same command in .venv/bin:

  export PATH="$PWD/.venv/bin:$PATH"
  multinode init hello && cd hello && multinode deploy && multinode invoke slowly_calculate_sum_of_squares bound=3
  multinode describe inv-…        the timeline of an invocation, step by step
  multinode --help                all commands; docs/tutorial.md leads through them"""

if __name__ == "__main__":
    sys.exit(main())
