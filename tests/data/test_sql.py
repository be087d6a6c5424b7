"""Reading from real databases: SQLite always, the servers where they run."""

import gc
import os
import uuid
from decimal import Decimal

import pyarrow.parquet as pq
import pytest
import sqlalchemy

from danlu.data.sources import Columns, ingest, open_source, rows_of
from danlu.data.sql import expand_environment
from danlu.errors import DataError, InputError, RecipeError
from danlu.recipe import Source, validate

POSTGRES = "postgresql+psycopg://postgres@127.0.0.1:5432/test"
MARIADB = "mysql+pymysql://root@127.0.0.1:3306/test"
REVIEWS = [("很好的酒店", "good"), ("it's “bad”, 100% 😀", "bad"), ("a\nb", "good")]


@pytest.fixture(autouse=True)
def no_connection_left_open():
    """Let a connection that was left open show in the test that left it."""
    yield
    gc.collect()


def engine_for(url):
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    try:
        with engine.connect():
            pass
    except sqlalchemy.exc.SQLAlchemyError as error:
        reason = f"no server at {url}: {str(error).splitlines()[0]}"
        if os.environ.get("DANLU_REQUIRE_SERVICES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return engine


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param(POSTGRES, marks=pytest.mark.service),
        pytest.param(MARIADB, marks=pytest.mark.service),
    ],
    ids=["sqlite", "postgresql", "mariadb"],
)
def reviews(request, tmp_path):
    """Yield a database's URL, an engine and a table of three reviews in it."""
    sqlite = request.param == "sqlite"
    url = f"sqlite:///{tmp_path / 'reviews.db'}" if sqlite else request.param
    engine = engine_for(url)
    name = f"reviews_{uuid.uuid4().hex}"
    table = sqlalchemy.Table(
        name,
        sqlalchemy.MetaData(),
        sqlalchemy.Column("number", sqlalchemy.Integer, primary_key=True, autoincrement=False),
        sqlalchemy.Column("body", sqlalchemy.Text),
        sqlalchemy.Column("verdict", sqlalchemy.String(20)),
        mysql_charset="utf8mb4",
    )
    table.create(engine)
    try:
        with engine.begin() as connection:
            rows = [{"number": i, "body": b, "verdict": v} for i, (b, v) in enumerate(REVIEWS, 1)]
            connection.execute(table.insert(), rows)
        yield url, engine, table
    finally:
        table.drop(engine)
        engine.dispose()


def source_of(url, table):
    query = f"SELECT body, verdict FROM {table.name} ORDER BY number"
    return Source(path=url, query=query, format="sql", name="reviews")


def rows(source):
    [file] = open_source(source)
    return list(rows_of(file, {"text": "body", "label": "verdict"}))


def test_a_query_gives_numbered_rows(reviews):
    url, _, table = reviews
    expected = [(i, {"body": b, "verdict": v}) for i, (b, v) in enumerate(REVIEWS, 1)]
    assert rows(source_of(url, table)) == expected


def test_the_digest_stays_until_a_row_changes(reviews):
    url, engine, table = reviews
    source = source_of(url, table)
    first = open_source(source)[0].digest
    assert open_source(source)[0].digest == first
    with engine.begin() as connection:
        connection.execute(table.update().where(table.c.number == 2).values(verdict="good"))
    changed = open_source(source)[0].digest
    assert changed != first
    with engine.begin() as connection:
        connection.execute(table.delete().where(table.c.number == 3))
    assert open_source(source)[0].digest not in (first, changed)


def test_rows_of_a_database_know_where_they_come_from(reviews, tmp_path):
    url, _, table = reviews
    shards = tmp_path / "shards"
    shards.mkdir()
    records = ingest(open_source(source_of(url, table)), Columns("body", "verdict"), shards)
    assert [(r["file"], r["format"], r["rows"]) for r in records] == [("reviews", "sql", 3)]
    stored = pq.read_table(shards / "00000.parquet").to_pylist()
    assert [(r["source"], r["row"], r["text"]) for r in stored] == [
        ("reviews", i, body) for i, (body, _) in enumerate(REVIEWS, 1)
    ]


def test_a_missing_column_and_an_empty_answer_are_refused(reviews, tmp_path):
    url, _, table = reviews
    source = Source(path=url, query=f"SELECT body FROM {table.name}", format="sql")
    with pytest.raises(DataError, match="no column 'verdict'"):
        rows(source)
    nothing = Source(path=url, query=f"SELECT * FROM {table.name} WHERE 1 = 0", format="sql")
    with pytest.raises(DataError, match="no rows"):
        ingest(open_source(nothing), Columns("body", "verdict"), tmp_path)


def test_a_wrong_query_is_refused_with_the_url_and_a_mend(reviews):
    url, _, _ = reviews
    with pytest.raises(DataError, match="refused") as caught:
        open_source(Source(path=url, query="SELECT body FROM no_such_table", format="sql"))
    assert caught.value.where == url
    assert "query" in caught.value.mend


def test_a_colon_inside_a_literal_is_not_a_parameter(reviews):
    url, _, table = reviews
    query = f"SELECT body, 'see :name' AS verdict FROM {table.name}"
    found = rows(Source(path=url, query=query, format="sql"))
    assert {row["verdict"] for _, row in found} == {"see :name"}


@pytest.mark.service
@pytest.mark.parametrize("url", [POSTGRES, MARIADB], ids=["postgresql", "mariadb"])
def test_a_decimal_column_can_be_a_target(url, tmp_path):
    engine_for(url).dispose()
    query = "SELECT 'a' AS text, CAST(4.5 AS DECIMAL(5, 2)) AS value"
    files = open_source(Source(path=url, query=query, format="sql"))
    assert list(rows_of(files[0], {})) == [(1, {"text": "a", "value": Decimal("4.50")})]
    ingest(files, Columns("text", "value"), tmp_path)
    assert float(pq.read_table(tmp_path / "00000.parquet")["label"][0].as_py()) == 4.5


@pytest.mark.service
def test_no_connection_stays_open_on_the_server():
    engine = engine_for(POSTGRES)
    name = f"danlu_{uuid.uuid4().hex}"
    source = Source(path=f"{POSTGRES}?application_name={name}", query="SELECT 1 AS a", format="sql")
    files = open_source(source)
    count = sqlalchemy.text("SELECT count(*) FROM pg_stat_activity WHERE application_name = :name")
    with engine.connect() as connection:
        assert list(rows_of(files[0], {})) == [(1, {"a": 1})]
        assert connection.execute(count, {"name": name}).scalar() == 0


def test_environment_variables_are_replaced(tmp_path, monkeypatch):
    path = tmp_path / "reviews.db"
    engine = sqlalchemy.create_engine(f"sqlite:///{path}", poolclass=sqlalchemy.NullPool)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE t (text TEXT)"))
        connection.execute(sqlalchemy.text("INSERT INTO t VALUES ('x')"))
    monkeypatch.setenv("REVIEWS_FOLDER", str(tmp_path))
    source = Source(path="sqlite:///${REVIEWS_FOLDER}/reviews.db", query="SELECT * FROM t")
    [file] = open_source(source.model_copy(update={"format": "sql"}))
    assert list(rows_of(file, {})) == [(1, {"text": "x"})]
    assert str(tmp_path) not in str(file.record())


def test_a_variable_that_is_not_set_is_named(monkeypatch):
    monkeypatch.delenv("NO_SUCH_SECRET", raising=False)
    with pytest.raises(InputError, match="NO_SUCH_SECRET is not set") as caught:
        expand_environment("postgresql://u:${NO_SUCH_SECRET}@h/d")
    assert "export NO_SUCH_SECRET" in caught.value.mend


def test_a_missing_sqlite_file_is_refused_and_not_made(tmp_path):
    path = tmp_path / "none.db"
    with pytest.raises(DataError, match="no such database"):
        open_source(Source(path=f"sqlite:///{path}", query="SELECT 1", format="sql"))
    assert not path.exists()


def recipe_with(path, **source):
    content = {"path": path, "query": "SELECT 1", **source}
    return validate({"name": "x", "data": {"task": "pretrain", "sources": [content]}}, "x.toml")


@pytest.mark.parametrize(
    "path",
    [
        "postgresql://u:swordfish@h/db",
        "mysql+pymysql://u:swordfish@h:3306/db?charset=utf8mb4",
        "postgresql://u:${PW}swordfish@h/db",
        "postgresql://h/db?user=u&password=swordfish",
    ],
)
def test_a_password_in_the_recipe_is_refused_and_not_shown(path):
    with pytest.raises(RecipeError, match="password") as caught:
        recipe_with(path)
    assert "swordfish" not in str(caught.value)


@pytest.mark.parametrize(
    "path", ["postgresql://u@h/db", "postgresql://u:${PW}@h/db", "postgresql://h/db"]
)
def test_a_url_without_a_literal_password_is_accepted(path):
    assert recipe_with(path).data.sources[0].path == path


def test_a_url_needs_a_query_and_a_file_has_none():
    with pytest.raises(RecipeError, match="needs a query"):
        recipe_with("postgresql://h/db", query=None)
    with pytest.raises(RecipeError, match="needs a query"):
        recipe_with("a.csv")


SECRETS = ["Tr0ub4dor", "Tr0ub4dor@Tr0ub4dor", "Tr0ub4dor/Tr0ub4dor", "Tr0ub4dor#?%41"]


@pytest.mark.service
@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("url", [POSTGRES, MARIADB], ids=["postgresql", "mariadb"])
def test_no_error_shows_a_password_from_the_environment(url, secret, monkeypatch):
    engine_for(url).dispose()
    monkeypatch.setenv("REVIEWS_PASSWORD", secret)
    user = url.split("://")[1].split("@")[0]
    path = url.replace(f"{user}@", "nobody_here:${REVIEWS_PASSWORD}@")
    with pytest.raises(DataError) as caught:
        open_source(Source(path=path, query="SELECT nothing FROM nowhere", format="sql"))
    assert "Tr0ub4dor" not in str(caught.value).replace("REVIEWS_PASSWORD", "")


@pytest.mark.service
@pytest.mark.parametrize("secret", ["a@b", "a/b", "a:b", "a%41b", "a#b?c"])
def test_a_password_with_signs_reaches_the_server_whole(secret, monkeypatch):
    engine = engine_for(MARIADB)
    user = f"reader_{uuid.uuid4().hex[:12]}"
    quoted = secret.replace("%", "%%")
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE USER '{user}'@'127.0.0.1' IDENTIFIED BY '{quoted}'")
    try:
        monkeypatch.setenv("REVIEWS_PASSWORD", secret)
        path = f"mysql+pymysql://{user}:${{REVIEWS_PASSWORD}}@127.0.0.1:3306/"
        [file] = open_source(Source(path=path, query="SELECT 1 AS a", format="sql"))
        assert list(rows_of(file, {})) == [(1, {"a": 1})]
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"DROP USER '{user}'@'127.0.0.1'")


def test_a_variable_in_the_wrong_place_is_refused_without_showing_it(monkeypatch):
    monkeypatch.setenv("REVIEWS_PASSWORD", "Tr0ub4dor")
    path = "postgresql+psycopg://u@127.0.0.1:${REVIEWS_PASSWORD}/test"
    with pytest.raises(DataError) as caught:
        open_source(Source(path=path, query="SELECT 1", format="sql"))
    assert "Tr0ub4dor" not in str(caught.value)
