"""Run a command, and print its exit code, seconds and peak memory as one line of JSON.

    python measure.py SECONDS LOG COMMAND...

A process of its own, because Linux counts what the parent held when it forked as the child's memory: this
one imports nothing that is large. Output of the command goes to LOG; after SECONDS it is killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time


def main() -> None:
    limit, log, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    start = time.perf_counter()
    child = os.fork()
    if child == 0:
        os.setsid()
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(target, 1)
        os.dup2(target, 2)
        os.execvp(command[0], command)
    signal.signal(signal.SIGALRM, lambda *_: os.killpg(child, signal.SIGKILL))
    signal.alarm(limit)
    _, status, usage = os.wait4(child, 0)
    seconds = time.perf_counter() - start
    print(json.dumps({
        "code": os.waitstatus_to_exitcode(status),
        "seconds": seconds,
        "mib": usage.ru_maxrss / 1024,
        "timed_out": seconds >= limit,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
