"""Which encoding a file is in, on text such as users have."""

import pytest

from danlu.data.encoding import REPLACEMENT, detect, open_text
from danlu.errors import DataError

SIMPLIFIED = (
    "这家酒店的服务非常好，房间也很干净。",
    "早餐种类不多，但是味道不错，下次还会来。",
    "前台态度恶劣，等了两个小时才办好入住。",
)
TRADITIONAL = (
    "這家飯店的服務非常好，房間也很乾淨。",
    "早餐種類不多，但是味道還不錯，下次還會來。",
    "櫃檯人員態度惡劣，等了兩個小時才辦好入住。",
)
FRENCH = (
    "L'hôtel était très propre et le personnel agréable.",
    "Le petit déjeuner manquait de variété, c'est dommage.",
    "Nous avons été déçus par la chambre à côté de l'ascenseur.",
)
GERMAN = (
    "Das Zimmer war sauber, aber für den Preis zu klein.",
    "Das Frühstück war großartig und die Bedienung höflich.",
    "Wir würden jederzeit zurückkehren, schöne Grüße aus Köln.",
)


def lines(sentences, number):
    return [f"{sentences[i % len(sentences)]} {i}" for i in range(number)]


@pytest.mark.parametrize("number", [3, 30, 300])
@pytest.mark.parametrize(
    ("sentences", "encoding"),
    [
        (SIMPLIFIED, "utf-8"),
        (SIMPLIFIED, "utf-8-sig"),
        (SIMPLIFIED, "gb18030"),
        (TRADITIONAL, "utf-8"),
        (TRADITIONAL, "big5"),
        (FRENCH, "latin-1"),
        (FRENCH, "utf-8"),
        (GERMAN, "latin-1"),
    ],
)
def test_the_encoding_is_detected_and_the_text_comes_back(tmp_path, sentences, encoding, number):
    content = "\n".join(lines(sentences, number)) + "\n"
    path = tmp_path / "reviews.txt"
    path.write_bytes(content.encode(encoding))
    assert detect(path) == encoding
    with open_text(path, detect(path)) as file:
        assert file.read() == content


@pytest.mark.parametrize(
    ("sentences", "encoding"),
    [(SIMPLIFIED, "gb18030"), (TRADITIONAL, "big5"), (FRENCH, "latin-1"), (GERMAN, "latin-1")],
)
def test_the_encoding_is_detected_between_many_plain_lines(tmp_path, sentences, encoding):
    path = tmp_path / "mixed.csv"
    rows = ["id,text"] + [f"{i},plain english words" for i in range(200)] + lines(sentences, 6)
    path.write_bytes("\r\n".join(rows).encode(encoding))
    assert detect(path) == encoding


def test_plain_ascii_and_an_empty_file_are_utf_8(tmp_path):
    path = tmp_path / "plain.txt"
    path.write_bytes(b"one\ntwo\n")
    assert detect(path) == "utf-8"
    path.write_bytes(b"")
    assert detect(path) == "utf-8"


def test_a_file_that_holds_only_a_byte_order_mark_is_read_as_empty(tmp_path):
    path = tmp_path / "mark.txt"
    path.write_bytes(b"\xef\xbb\xbf")
    with open_text(path, detect(path)) as file:
        assert file.read() == ""


@pytest.mark.parametrize("place", [0, 20, 49])
def test_one_broken_row_does_not_change_the_encoding(tmp_path, place):
    rows = [line.encode() for line in lines(SIMPLIFIED, 50)]
    rows[place] = rows[place][:10] + b"\xe4\xbd" + rows[place][12:]
    path = tmp_path / "broken.txt"
    path.write_bytes(b"\n".join(rows) + b"\n")
    assert detect(path) == "utf-8"
    with open_text(path, "utf-8") as file:
        broken = [number for number, line in enumerate(file) if REPLACEMENT in line]
    assert broken == [place]


def test_a_broken_row_after_a_mebibyte_of_ascii_does_not_change_the_encoding(tmp_path):
    path = tmp_path / "late.txt"
    good = "".join(line + "\n" for line in lines(SIMPLIFIED, 200)).encode()
    path.write_bytes(b"a plain line of words\n" * 50_000 + good + b"\xe4\xbd\n")
    assert detect(path) == "utf-8"


def test_a_character_cut_at_the_end_of_the_file_does_not_change_the_encoding(tmp_path):
    path = tmp_path / "cut.txt"
    path.write_bytes("\n".join(lines(SIMPLIFIED, 40)).encode() + "好".encode()[:2])
    assert detect(path) == "utf-8"


def test_a_character_across_two_chunks_is_whole(tmp_path):
    path = tmp_path / "long.txt"
    path.write_bytes(b"a" * ((1 << 20) - 1) + "好\n".encode())
    assert detect(path) == "utf-8"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_wide_encodings_with_a_mark_are_refused_with_a_mend(tmp_path, encoding):
    mark = "" if encoding in ("utf-16", "utf-32") else "\ufeff"
    path = tmp_path / "wide.txt"
    path.write_bytes((mark + "你好\nhello").encode(encoding))
    with pytest.raises(DataError, match="UTF-16") as caught:
        detect(path)
    assert str(path) in caught.value.where
    assert "iconv" in caught.value.mend


def test_utf_32_in_big_endian_order_is_refused_too(tmp_path):
    path = tmp_path / "wide.txt"
    path.write_bytes("\ufeff你好\nhello".encode("utf-32-be"))
    with pytest.raises(DataError, match="UTF-32"):
        detect(path)
