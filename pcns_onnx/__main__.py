"""The command as a process: what holds before anything is imported, and when all is done.

Ctrl-C ends it with one line and code 130, whatever is being imported. While a command works, it is a
KeyboardInterrupt, so that nothing half done is left (`cli.terminal`). What is closed among stdin, stdout and stderr
is opened on nothing: the next file that is opened would be taken for it. What stdout and stderr lead to may be
full or gone; see `cli.terminal.Outlet`.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_INTERRUPTED = 130


def leave(*_: object) -> NoReturn:
    """End the process at once, with one line: nothing has been begun."""
    try:
        os.write(2, b"\n" * os.isatty(2) + b"pcns-onnx: error: interrupted\n")
    finally:
        os._exit(_INTERRUPTED)


def run() -> None:
    """Console entry point."""
    try:
        import signal

        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else somebody decided that it is ignored
            signal.signal(signal.SIGINT, leave)
        code = _run()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is said and done: the interpreter is going anyway
        exec("")  # Python takes an interrupt inside exec (of dataclasses, say) for unhandled until the next one
    except KeyboardInterrupt:
        leave()
    sys.exit(code)


def _run() -> int:
    from pcns_onnx.cli.terminal import lost_output, open_outlets

    open_outlets()
    from pcns_onnx.cli.main import main

    code = main()
    lost = lost_output()
    if lost is not None and code == 0:
        sys.stderr.write(f"pcns-onnx: error: {lost}\n")
        code = 2
    return code


if __name__ == "__main__":
    run()
