"""Make the interpreters that the peers run in.

    python benchmarks/environments.py hf litgpt

Each peer lives in a virtual environment of its own under ``benchmarks/.work``:
LitGPT wants an older huggingface-hub than transformers 5 does, and danlu is
measured with neither of them beside it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from pathlib import Path

WORK = Path(__file__).parent / ".work"
TORCH = "torch==2.13.0"
PEERS = {
    "hf": ["transformers==5.23.0", "accelerate==1.15.0"],
    "litgpt": ["litgpt==0.5.13"],
}


def python_of(name: str) -> Path:
    """Return where a peer's interpreter is, or would be."""
    return WORK / f"{name}-env" / "bin" / "python"


def make(name: str) -> Path:
    """Make one environment, unless it is there; return its interpreter.

    Parameters
    ----------
    name : {'hf', 'litgpt'}

    Returns
    -------
    Path
    """
    python = python_of(name)
    finished = python.parent.parent / "finished"
    if finished.exists():
        return python
    venv.create(python.parent.parent, with_pip=True, clear=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # torch goes first and alone: a CPU build of this version satisfies what follows,
    # where one resolution of everything could choose gigabytes of CUDA libraries.
    subprocess.run([*install, TORCH, "numpy"], check=True)
    installed = subprocess.run(
        [str(python), "-c", "import torch; print(torch.__version__)"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    constraint = python.parent.parent / "constraint.txt"
    constraint.write_text(f"torch=={installed}\n", encoding="utf-8")
    subprocess.run([*install, "--constraint", str(constraint), *PEERS[name]], check=True)
    finished.touch()
    return python


def main() -> None:
    """Make those that were named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", choices=sorted(PEERS))
    for name in parser.parse_args().names:
        print(name, make(name), file=sys.stderr)


if __name__ == "__main__":
    main()
