"""A starter by script: what it does with a start is said by the worker's id.

wrk-ok-…      a worker: a sleeping process, until it is killed
wrk-short-…   a worker that is gone at once
wrk-refused-… one that cannot be made
wrk-silent-…  no answer
wrk-crash-…   the starter dies
"""

import json
import os
import signal
import socket
import sys
import threading


def main():
    channel = socket.socket(fileno=int(sys.argv[sys.argv.index("--socket-fd") + 1]))
    waiters = []
    for line in channel.makefile("r"):
        worker_id = json.loads(line)["start"]["worker_id"]
        kind = worker_id.split("-")[1]
        if kind == "ok":
            waiters.append(run(channel, worker_id))
        elif kind == "short":
            say(
                channel,
                {"started": worker_id, "pid": 2**22 - 1},
                {"gone": worker_id, "status": 256},
            )
        elif kind == "refused":
            say(channel, {"failed": worker_id, "message": "no room"})
        elif kind == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
    for waiter in waiters:
        waiter.join()


def run(channel, worker_id):
    pid = os.fork()
    if pid == 0:
        channel.close()
        signal.pause()
    say(channel, {"started": worker_id, "pid": pid})
    waiter = threading.Thread(target=wait, args=(channel, worker_id, pid))
    waiter.start()
    return waiter


def wait(channel, worker_id, pid):
    _, status = os.waitpid(pid, 0)
    say(channel, {"gone": worker_id, "status": status})


def say(channel, *messages):
    text = "".join(json.dumps(message) + "\n" for message in messages)
    try:
        channel.sendall(text.encode())
    except OSError:
        return


if __name__ == "__main__":
    main()
