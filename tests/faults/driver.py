"""Runs danlu in a child each time that it is told to: the real command line, without the imports.

Each line read from stdin is a JSON object with the ``arguments`` of a command and the file that
its stderr goes to. A child is started for it, whose process number is printed, and its status
when it has ended. Children are forked before anything was computed: processes like any other.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback

from danlu import cli, fitting, pipeline  # noqa: F401 - imported here so that children need not
from danlu.data import prepare, sources  # noqa: F401
from danlu.release import report  # noqa: F401
from danlu.serve import engine  # noqa: F401


def child(arguments: list[str], stderr: str) -> None:
    """Run a command and end the process with its status."""
    # A shell starts what is to run in the background with SIGINT ignored, and that is inherited.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = 0
    try:
        os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.argv = ["danlu", *arguments]
        cli.main()
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 99
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    """Start children until stdin ends."""
    for line in sys.stdin:
        number = os.fork()
        if number == 0:
            child(**json.loads(line))
        print(number, flush=True)
        _, status = os.waitpid(number, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
