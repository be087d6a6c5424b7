"""Rows from a SQL database, through SQLAlchemy."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from danlu.errors import DataError, InputError
from danlu.recipe import Source


def digest_query(source: Source) -> str:
    """Hash a query's answer: a database has no fingerprint but its rows."""
    total = hashlib.sha256()
    for row in query(source):
        total.update(json.dumps(row, default=str, ensure_ascii=False).encode())
    return total.hexdigest()


def query(source: Source) -> Iterator[dict[str, Any]]:
    """Stream a query's rows through SQLAlchemy."""
    import sqlalchemy
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    url, secrets = expand_environment(source.path)
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).is_file():
        raise DataError("there is no such database", where=source.path)
    assert source.query is not None
    try:
        engine = sqlalchemy.create_engine(url, poolclass=NullPool)
        with (
            engine.connect().execution_options(stream_results=True) as connection,
            closing(connection.exec_driver_sql(source.query)) as answer,
        ):
            for row in answer.mappings():
                yield dict(row)
    except (SQLAlchemyError, ImportError, ValueError) as error:
        told = str(error).splitlines()[0]
        for secret in secrets:
            told = told.replace(secret, "***")
        raise DataError(
            f"the database refused: {told}",
            where=source.path,
            mend="check the URL, the query and the driver (pip install 'danlu[sql]')",
        ) from None


def expand_environment(url: str) -> tuple[str, list[str]]:
    """Replace ``${NAME}`` in a URL by the environment's value, quoted for its place.

    Returns
    -------
    url : str
    secrets : list of str
        Everything that must not be shown: the values, as given and as quoted.

    Raises
    ------
    InputError
        If a variable is not set.
    """
    secrets: list[str] = []
    plain = url.startswith("sqlite:")  # a file's path, in which nothing is quoted

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name not in os.environ:
            raise InputError(
                f"the environment variable {name} is not set", where=url, mend=f"export {name}=…"
            )
        found = os.environ[name]
        quoted = found if plain else quote(found, safe="")
        secrets.extend(part for part in (found, quoted) if part and not plain)
        return quoted

    return re.sub(r"\$\{(\w+)\}", value, url), secrets
