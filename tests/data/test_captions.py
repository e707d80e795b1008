"""Caption lists: every published form is read to the letter, and what could be read in two ways is refused."""

import pytest

from splam.data.captions import read_captions
from splam.data.images import DataError


def read(path, content: str | bytes) -> list[str]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return [caption for _, caption in read_captions(path, ("id", "seed"))]


@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("a.csv", 'id,caption\n1,"two\nlines, one caption"\n2,"a ""dog"""\n', ["two lines, one caption", 'a "dog"']),
        ("a.csv", "\ufeffcaption,id\na dog,1\n", ["a dog"]),  # as Excel saves it
        ("a.csv", "caption,id\r\nnull,1\r\nNA,2\r\n", ["null", "NA"]),
        ("a.csv", "caption,id\na\u2028b,1\n\x85c\u2029d,2\n", ["a b", "c d"]),
        ("a.jsonl", '{"text": "a\u2028dog", "id": 1}\n{"text": "zwei Hündchen"}\n', ["a dog", "zwei Hündchen"]),
        ("a.jsonl", '\ufeff{"prompt": "two\\ncats", "seed": 3}\r\n', ["two cats"]),
    ],
)
def test_published_forms_are_read_to_the_letter(tmp_path, name, content, expected):
    assert read(tmp_path / name, content) == expected


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", "", "holds no rows with columns; it must be a .csv with a header or a .jsonl"),
        ("a.csv", 'caption,id\na dog,1\n" ",2\ntwo cats,3\n', "empty captions, the first is number 2"),
        ("a.jsonl", '"a dog"\n', "holds no rows with columns.*columns caption, text, prompt"),
        ("a.jsonl", '{"id": 1, "text": "a dog"}\n{"txt": "a"}\n', r"empty captions, the first is number 2 \(None\)"),
        ("a.csv", "id,caption\n1,a dog, a cat\n", "line 2 has more or fewer fields than the header: quote"),
        ("a.csv", "caption,id\na dog\n", "line 2 has more or fewer fields"),
        ("a.csv", 'id,caption\n1,"a dog\n2,a cat\n', "is not a list of captions .*unexpected end"),
        ("a.csv", "caption,caption\na,b\n", "names a column twice"),
        ("a.csv", "caption,text\na,b\n", "has the columns caption, text: there must be exactly one of caption"),
        ("a.csv", "a dog\na cat\n", "has the columns a dog: there must be exactly one of caption, text, prompt"),
        ("a.parquet", "PAR1", "it must be a .csv with a header or a .jsonl"),
        ("a.csv", "Hündchen".encode("latin-1"), "is not a list of captions .*utf-8.*; it must be .*in UTF-8"),
    ],
)
def test_what_is_ambiguous_or_missing_is_named(tmp_path, name, content, message):
    with pytest.raises(DataError, match=rf"{name}.*{message}"):
        read(tmp_path / name, content)
