"""Runs a recipe in a child each time that it is told to: a real run, without the imports.

    python driver.py RECIPE OUT

Each line read from stdin starts a child, whose process number is printed; when it has ended, so
is its status. A child is forked before anything was computed, so it is a process like any other.
"""

from __future__ import annotations

import os
import sys
import traceback

import danlu
from danlu import api, fitting, pipeline  # noqa: F401 - imported here so that children need not
from danlu.data import prepare, sources  # noqa: F401
from danlu.errors import DanluError, Interrupted
from danlu.release import report  # noqa: F401
from danlu.serve import engine  # noqa: F401


def main() -> None:
    """Start children until stdin ends."""
    recipe, out = sys.argv[1:]
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 0
            try:
                danlu.run(recipe, out, line.split())
            except (DanluError, Interrupted) as error:
                code = error.exit_code
            except BaseException:
                traceback.print_exc()
                code = 99
            os._exit(code)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
