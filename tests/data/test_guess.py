"""What `danlu new` sees in data, and that the recipe it writes works."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import danlu
from danlu.artifact import read_json
from danlu.data.guess import look, write
from danlu.data.sources import open_source, rows_of
from danlu.errors import DataError, InputError
from danlu.recipe import load

ENGLISH = [f"The room number {i} was clean and very quiet at night" for i in range(80)]
CHINESE = [f"这家酒店的服务非常好，第{i}个房间也很干净" for i in range(80)]


def table(path, header, rows, delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def opened(guess, path):
    """Write the recipe, load it, open its sources; return the recipe and its first row."""
    recipe, _ = load(write(guess, path))
    files = [file for source in recipe.data.sources for file in open_source(source)]
    wanted = {"text": recipe.data.text}
    if recipe.data.label:
        wanted["label"] = recipe.data.label
    rows = [row for file in files for _, row in rows_of(file, wanted)]
    assert rows
    return recipe, rows


def test_a_table_with_a_label_becomes_a_classification(tmp_path):
    rows = [(i, text, ("good", "bad")[i % 2]) for i, text in enumerate(ENGLISH)]
    data = table(tmp_path / "reviews.csv", ["id", "review", "label"], rows)
    guess = look(data, None)
    assert (guess.task, guess.text, guess.label) == ("classify", "review", "label")
    assert guess.language == "written in Latin letters"
    assert guess.rows == 80
    recipe, rows = opened(guess, tmp_path / "out" / "reviews.toml")
    assert (recipe.data.task, recipe.data.text, recipe.data.label) == (
        "classify",
        "review",
        "label",
    )
    assert rows[0]["review"] == ENGLISH[0]


def test_a_column_of_few_values_is_taken_for_the_label(tmp_path):
    rows = [(text, ("north", "south", "west")[i % 3], i) for i, text in enumerate(CHINESE)]
    data = table(tmp_path / "a.tsv", ["body", "where", "number"], rows, "\t")
    guess = look(data, None)
    assert (guess.task, guess.text, guess.label) == ("classify", "body", "where")
    assert guess.language == "Chinese"
    opened(guess, tmp_path / "a.toml")


def test_many_different_numbers_make_a_regression(tmp_path):
    data = table(tmp_path / "a.csv", ["text", "price"], [(t, i / 2) for i, t in enumerate(ENGLISH)])
    guess = look(data, None)
    assert (guess.task, guess.label) == ("regress", "price")
    recipe, _ = opened(guess, tmp_path / "a.toml")
    assert recipe.gate.require == ("test.mae - baseline < 0",)


def test_the_target_that_the_user_names_is_taken(tmp_path):
    rows = [(text, "ab"[i % 2], "cde"[i % 3]) for i, text in enumerate(ENGLISH)]
    data = table(tmp_path / "a.csv", ["text", "label", "other"], rows)
    assert look(data, "other").label == "other"
    with pytest.raises(InputError, match="no column 'nope'; there are: text, label, other"):
        look(data, "nope")


def test_a_column_of_one_value_is_refused_as_target(tmp_path):
    data = table(tmp_path / "a.csv", ["text", "same"], [(text, "x") for text in ENGLISH])
    with pytest.raises(DataError, match="only one value"):
        look(data, "same")


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_records_are_recognised_in_every_format(tmp_path, kind):
    records = [{"content": t, "stars": i % 5 + 1} for i, t in enumerate(CHINESE)]
    data = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(records), data)
    elif kind == "json":
        data.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    else:
        data.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    guess = look(data, None)
    assert (guess.task, guess.text, guess.label) == ("classify", "content", "stars")
    _, rows = opened(guess, tmp_path / "out.toml")
    assert rows[1]["stars"] == 2


def test_a_text_file_is_for_pretraining(tmp_path):
    data = tmp_path / "corpus.txt"
    data.write_text("\n".join(CHINESE), encoding="utf-8")
    guess = look(data, None)
    assert (guess.task, guess.text, guess.label) == ("pretrain", "line", None)
    recipe, _ = opened(guess, tmp_path / "corpus.toml")
    assert recipe.pretrain.objective == "masked"


def test_one_text_file_a_class_is_recognised(tmp_path):
    folder = tmp_path / "reviews"
    folder.mkdir()
    for name in ("good", "bad"):
        (folder / f"{name}.txt").write_text("\n".join(CHINESE), encoding="utf-8")
    guess = look(folder, None)
    assert (guess.task, guess.label, guess.rows) == ("classify", None, 160)
    recipe, _ = opened(guess, tmp_path / "reviews.toml")
    assert sorted(source.label for source in recipe.data.sources) == ["bad", "good"]


@pytest.mark.parametrize("names", [("good", "bad"), ("v1.0", "v1.5")])
def test_one_folder_a_class_is_recognised_by_its_whole_name(tmp_path, names):
    folder = tmp_path / "reviews"
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "1.txt").write_text("\n".join(ENGLISH), encoding="utf-8")
    guess = look(folder, None)
    assert guess.task == "classify"
    recipe, rows = opened(guess, tmp_path / "reviews.toml")
    assert sorted(source.label for source in recipe.data.sources) == sorted(names)
    assert len(rows) == 160


def test_a_folder_of_tables_is_read_as_one_table(tmp_path):
    folder = tmp_path / "tables"
    folder.mkdir()
    for name in ("a.csv", "b.csv"):
        table(folder / name, ["text", "label"], [(t, "ab"[i % 2]) for i, t in enumerate(ENGLISH)])
    guess = look(folder, None)
    assert (guess.task, guess.label) == ("classify", "label")
    _, rows = opened(guess, tmp_path / "tables.toml")
    assert len(rows) == 160


@pytest.mark.parametrize(
    "name", ['the "text"', "back\\slash", "it's", "#text = 1", "评论 内容", "客户\n评价", "a\tb"]
)
def test_odd_column_names_survive_the_recipe(tmp_path, name):
    rows = [(text, "ab"[i % 2]) for i, text in enumerate(ENGLISH)]
    data = table(tmp_path / "a.csv", [name, f"{name} label"], rows)
    guess = look(data, f"{name} label")
    recipe, _ = opened(guess, tmp_path / "a.toml")
    assert (recipe.data.text, recipe.data.label) == (name, f"{name} label")


def test_odd_file_names_survive_the_recipe(tmp_path):
    data = tmp_path / 'my "best" [1] reviews.txt'
    data.write_text("\n".join(ENGLISH), encoding="utf-8")
    _, rows = opened(look(data, None), tmp_path / "deep" / "a.toml")
    assert len(rows) == 80


def test_the_recipe_is_named_after_the_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "corpus.txt"
    data.write_text("\n".join(ENGLISH), encoding="utf-8")
    assert write(look(data, None), None).name == "corpus.toml"
    assert load(tmp_path / "corpus.toml")[0].name == "corpus"


def test_a_recipe_that_exists_is_not_overwritten(tmp_path):
    data = tmp_path / "corpus.txt"
    data.write_text("\n".join(ENGLISH), encoding="utf-8")
    path = tmp_path / "corpus.toml"
    path.write_text("mine")
    with pytest.raises(InputError, match="exists already") as caught:
        write(look(data, None), path)
    assert caught.value.where == str(path)
    assert path.read_text() == "mine"


def test_what_holds_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        look(tmp_path / "nowhere.csv", None)
    (tmp_path / "empty.csv").write_text("text,label\n")
    with pytest.raises(DataError, match="no rows"):
        look(tmp_path / "empty.csv", None)
    numbers = table(tmp_path / "n.csv", ["a", "b"], [(i, i) for i in range(20)])
    with pytest.raises(DataError, match="no column holds text"):
        look(numbers, None)


PEOPLE = [
    (i + 1, 20 + i % 50, ("clerk", "nurse", "smith")[i % 3], f"2024-0{i % 9 + 1}-11",
     f"Person {i} of Some Long Town", "yes" if (i % 50) > 20 else "no")
    for i in range(200)
]  # fmt: skip
PEOPLE_NAMES = ["number", "age", "job", "joined", "name", "renewed"]


def people(folder, kind):
    path = folder / f"people.{kind}"
    records = [dict(zip(PEOPLE_NAMES, row, strict=True)) for row in PEOPLE]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    else:
        table(path, PEOPLE_NAMES, PEOPLE, "\t" if kind == "tsv" else ",")
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "jsonl"])
def test_a_table_without_texts_is_recognised_in_every_format(tmp_path, kind):
    guess = look(people(tmp_path, kind), None)
    assert (guess.modality, guess.task, guess.label) == ("table", "classify", "renewed")
    assert guess.ignore == ["number", "name"]
    recipe, _ = load(write(guess, tmp_path / "out" / "people.toml"))
    assert recipe.data.modality == "table"
    assert recipe.table.ignore == ("number", "name")
    told = "\n".join(guess.reasons)
    assert "it counts the rows" in told
    assert "nearly every row has another" in told


def test_the_recipe_of_a_table_runs_as_it_is(tmp_path):
    path = write(look(people(tmp_path, "csv"), None), tmp_path / "people.toml")
    result = danlu.run(path, tmp_path / "run")
    assert result.released
    names = {c["name"] for c in read_json(tmp_path / "run" / "model" / "encoder.json")["columns"]}
    assert names == {"age", "job", "joined days", "joined month", "joined weekday"}


def test_numbers_to_foretell_make_a_regression_that_runs(tmp_path):
    rows = [(i % 17, i % 5, i % 17 * 3 + i % 5) for i in range(300)]
    data = table(tmp_path / "a.csv", ["a", "b", "c"], rows)
    guess = look(data, "c")
    assert (guess.modality, guess.task, guess.label) == ("table", "regress", "c")
    assert danlu.run(write(guess, tmp_path / "a.toml"), tmp_path / "run").released


def test_a_column_that_is_the_label_in_other_words_is_left_out(tmp_path):
    rows = [(i % 7, i % 11, int(i % 3 == 0), "bad" if i % 3 else "good") for i in range(100)]
    guess = look(table(tmp_path / "a.csv", ["a", "b", "flag", "class"], rows), None)
    assert guess.ignore == ["flag"]


def test_a_target_of_a_value_for_each_row_is_refused(tmp_path):
    with pytest.raises(DataError, match="200 different values"):
        look(people(tmp_path, "csv"), "name")


LONG = [f"{text}, and {text}" for text in ENGLISH]


def test_reviews_with_facts_beside_them_are_a_table_with_texts(tmp_path):
    rows = [(i, i % 5, i % 7, i % 3, text, "ab"[i % 2]) for i, text in enumerate(LONG)]
    data = table(tmp_path / "a.csv", ["id", "stars1", "b", "c", "review", "label"], rows)
    guess = look(data, None)
    assert (guess.modality, guess.texts) == ("table", ["review"])
    assert guess.ignore == ["id"]
    assert any("read beside the cells" in reason for reason in guess.reasons)
    path = write(guess, tmp_path / "a.toml")
    recipe, _ = load(path)
    assert recipe.table.texts == ("review",)
    assert recipe.model.backbone == "transformer"
    quick = ["gate.require=[]", "pretrain.epochs=1", "finetune.epochs=1", "evaluate.bootstrap=100"]
    assert danlu.run(path, tmp_path / "run", overrides=quick).released


@pytest.mark.parametrize(
    ("names", "target"),
    [
        (["id", "review", "label"], None),  # a number of the row says nothing
        (["id", "same", "stars1", "review", "label"], None),  # one fact is few
        (["id", "stars1", "b", "review"], None),  # nothing to learn but the text
    ],
)
def test_reviews_with_little_beside_them_are_texts(tmp_path, names, target):
    cells = {"same": "x"}
    rows = [
        {"id": i, "stars1": i % 5, "b": i % 7, "review": text, "label": "ab"[i % 2]} | cells
        for i, text in enumerate(LONG)
    ]
    data = table(tmp_path / "a.csv", names, [[row[name] for name in names] for row in rows])
    guess = look(data, target)
    assert (guess.modality, guess.text) == ("text", "review")


@pytest.mark.parametrize(
    "texts", [["good", "bad", "so so", "fine"], ["很好", "不好", "一般", "可以"]]
)
def test_short_texts_with_a_label_are_texts(tmp_path, texts):
    rows = [(f"{texts[i % 4]} {i}", "ab"[i % 2]) for i in range(80)]
    guess = look(table(tmp_path / "a.csv", ["text", "label"], rows), None)
    assert (guess.modality, guess.text, guess.label) == ("text", "text", "label")


def test_the_guess_says_why_and_can_be_written_as_json(tmp_path):
    rows = [(text, "ab"[i % 2]) for i, text in enumerate(ENGLISH)]
    data = table(tmp_path / "a.csv", ["text", "label"], rows)
    guess = look(data, None)
    assert json.loads(json.dumps(guess.to_dict()))["data"] == str(data)
    for start in ("encoding:", "text:", "label:", "task:", "language:", "size:"):
        assert any(reason.startswith(start) for reason in guess.reasons)
    content = write(guess, tmp_path / "a.toml").read_text(encoding="utf-8")
    assert all(f"#   {reason}" in content for reason in guess.reasons)


def interactions(users=120, each=12):
    """Everyone goes on from one item to the next."""
    return [
        (
            f"u{user}",
            f"i{(user + step) % 30}",
            1 + step % 5,
            f"2024-{1 + step:02d}-{1 + user % 28:02d}",
        )
        for user in range(users)
        for step in range(each)
    ]


def test_a_table_of_interactions_becomes_a_recommender_that_runs_as_it_is(tmp_path):
    data = table(tmp_path / "shop.csv", ["userId", "product_id", "rating", "when"], interactions())
    guess = look(data, None)
    assert (guess.modality, guess.task) == ("events", "rank")
    assert any("'userId' says who, 'product_id' with what, 'when' when" in r for r in guess.reasons)
    path = write(guess, tmp_path / "shop.toml")
    assert load(path)[0].events.min_user == 5
    result = danlu.run(path, tmp_path / "run", ["evaluate.bootstrap=100", "finetune.epochs=4"])
    assert result.released
    assert len(danlu.load(result.folder).predict([["i3", "i4"]])[0]["items"]) == 10


def test_short_histories_ask_for_less_of_each_user(tmp_path):
    data = table(tmp_path / "shop.csv", ["user", "item", "r", "time"], interactions(90, 3))
    assert load(write(look(data, None), tmp_path / "s.toml"))[0].events.min_user == 2


def test_names_with_a_type_behind_a_colon_are_known(tmp_path):
    header = ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]
    rows = [(u, i, r, 100 * n) for n, (u, i, r, _) in enumerate(interactions())]
    data = table(tmp_path / "x.inter", header, rows, "\t")
    events = load(write(look(data, None), tmp_path / "x.toml"))[0].events
    assert (events.user, events.item, events.time) == (header[0], header[1], header[3])


def test_a_table_with_users_that_asks_for_something_else_is_no_recommender(tmp_path):
    rows = interactions()
    data = table(tmp_path / "a.csv", ["user", "item", "rating", "time"], rows)
    assert look(data, "item").modality == "table"
    told = [
        (*row, f"{ENGLISH[n % 80]}, and day {n} was like that too") for n, row in enumerate(rows)
    ]
    data = table(tmp_path / "b.csv", ["user", "item", "rating", "time", "review"], told)
    guess = look(data, None)
    assert (guess.modality, guess.label, guess.texts) == ("table", "rating", ["review"])
    once = [(f"u{n}", *row[1:]) for n, row in enumerate(rows)]
    soon = [(*row[:3], "soon") for row in rows]
    for name, these in (("c", once), ("d", soon)):
        data = table(tmp_path / f"{name}.csv", ["user", "item", "rating", "time"], these)
        assert look(data, None).modality == "table"
