"""The same from Python: :func:`run` a recipe, :func:`load` a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danlu.errors import InputError

if TYPE_CHECKING:
    from danlu.pipeline import Result


def run(
    recipe: str | Path,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    quiet: bool = True,
    profile: bool = False,
    fetch: bool = False,
) -> Result:
    """Run a recipe file from raw data to a released model.

    Parameters
    ----------
    recipe : path-like
        A TOML file.
    out : path-like, optional
        The run folder; ``runs/NAME`` under the current folder if not given.
    overrides : sequence of str
        ``path=value`` pairs, as ``--set`` on the command line.
    quiet : bool
        Whether to keep progress off stderr.
    profile : bool
        Whether to measure where the time of a training step goes, for the report.
    fetch : bool
        Consent to downloading the packages that the recipe's sources name, each once.

    Returns
    -------
    Result
        With ``folder``, ``metrics``, ``headline`` and ``released``.

    Raises
    ------
    DanluError
        As the command line exits: CheckFailed 1, InputError 2, MachineError 3.
    """
    from danlu import pipeline
    from danlu import recipe as recipes
    from danlu.log import Screen

    filled, _ = recipes.load(recipe, list(overrides))
    folder = Path(out) if out is not None else Path("runs") / filled.name
    return pipeline.run(filled, folder, Screen(quiet), profile, fetch)


class Predictor:
    """A released model.

    Parameters
    ----------
    folder : Path
        A run folder, or the ``model`` folder inside one.
    """

    def __init__(self, folder: Path) -> None:
        from danlu.serve.engine import Engine

        if not folder.exists():
            raise InputError(
                "there is no such run", where=str(folder), mend="`danlu run RECIPE` makes one"
            )
        inside = folder / "model"
        self.folder = folder
        self.engine = Engine.load(folder if (folder / "config.json").is_file() else inside)

    def predict(self, records: Sequence[Any], batch_size: int = 64) -> list[dict[str, Any]]:
        """Answer about each of several records.

        Parameters
        ----------
        records : sequence
            Texts, or of a table rows as dicts; an image is its file's bytes. A single string
            is refused: it would be read as a list of letters.
        batch_size : int
            How many are computed at once; no answer depends on it.

        Returns
        -------
        list of dict
            ``label``, ``probability`` and ``probabilities`` (``labels`` where a
            record may carry several, ``value`` for a regression, with ``quantiles`` if
            they were learnt); of texts ``tokens`` and
            ``truncated``, of rows what was ``missing`` and the like.
        """
        if isinstance(records, (str, dict)):
            raise InputError("predict wants a list", mend='predict(["…"])')
        return self.engine.predict(list(records), batch_size)


def load(run: str | Path) -> Predictor:
    """Load the model that a run released.

    Raises
    ------
    InputError
        If there is none.
    """
    return Predictor(Path(run))
