import json
import pickle
from pathlib import Path

import pytest

from mcan.errors import DataError
from mcan.text.vocabulary import PAD, UNK, Vocabulary, build_answers, build_tokens

TOKENS = ("PAD", "UNK", "is", "it", "red")
ANSWERS = ("yes", "", "2 dogs", "café")


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary(TOKENS, ANSWERS)


def test_encode(vocabulary: Vocabulary) -> None:
    assert vocabulary.encode(["it", "is", "blue", "red"]) == [3, 2, UNK, 4]
    assert vocabulary.encode([]) == [UNK]
    assert vocabulary.encode(["PAD", "UNK"]) == [UNK, UNK]
    assert TOKENS[PAD] == "PAD"


def test_words_and_answer_index(vocabulary: Vocabulary) -> None:
    assert vocabulary.words == ("is", "it", "red")
    assert vocabulary.answer_index == {"yes": 0, "": 1, "2 dogs": 2, "café": 3}


def test_json_round_trip(vocabulary: Vocabulary, tmp_path: Path) -> None:
    text = vocabulary.to_json()
    assert Vocabulary.from_json(text, "here") == vocabulary
    path = tmp_path / "vocabulary.json"
    path.write_text(json.dumps({**json.loads(text), "built_from": ["train"]}), encoding="utf-8")
    assert Vocabulary.read(path) == vocabulary
    assert pickle.loads(pickle.dumps(vocabulary)) == vocabulary


def test_digest_tells_vocabularies_apart(vocabulary: Vocabulary) -> None:
    assert vocabulary.digest == Vocabulary(TOKENS, ANSWERS).digest
    assert len(vocabulary.digest) == 64
    others = [
        Vocabulary(TOKENS, ANSWERS[::-1]),
        Vocabulary(TOKENS[:-1], ANSWERS),
        Vocabulary(TOKENS, ANSWERS[:-1]),
        Vocabulary((*TOKENS, "yes"), ANSWERS[1:]),
    ]
    assert len({vocabulary.digest, *(other.digest for other in others)}) == 5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not valid JSON"),
        ('{"tokens": ["PAD"', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "expected an object"),
        ('{"answers": []}', "'tokens' is missing or not a list"),
        ('{"tokens": ["PAD", "UNK"], "answers": {"yes": 0}}', "'answers' is missing or not a list"),
        ('{"tokens": ["PAD", "UNK", 7], "answers": []}', r"tokens\[2\] is 7, expected a string"),
        ('{"tokens": ["PAD", "UNK"], "answers": [["x"]]}', r"answers\[0\] is \['x'\]"),
        ('{"tokens": ["PAD", "UNK", "a", "a"], "answers": []}', r"tokens\[3\] repeats 'a'"),
        ('{"tokens": ["PAD", "UNK"], "answers": ["", "no", ""]}', r"answers\[2\] repeats ''"),
        ('{"tokens": ["UNK", "PAD"], "answers": []}', r"starts with \['UNK', 'PAD'\], expected"),
        ('{"tokens": [], "answers": []}', r"starts with \[\]"),
    ],
)
def test_malformed_json_is_told_in_a_sentence(text: str, says: str) -> None:
    with pytest.raises(DataError, match=says) as raised:
        Vocabulary.from_json(text, "folder/vocabulary.json")
    assert str(raised.value).startswith("folder/vocabulary.json: ")


def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.json"
    with pytest.raises(DataError, match="No such file"):
        Vocabulary.read(path)
    with pytest.raises(DataError, match="cannot read"):
        Vocabulary.read(tmp_path)
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(DataError, match="not UTF-8"):
        Vocabulary.read(path)


def test_build_tokens_in_order_of_appearance() -> None:
    assert build_tokens(["Is it red?", "?", "red-hot: IS it"]) == (*TOKENS, "hot")
    assert build_tokens([]) == ("PAD", "UNK")


def test_build_answers() -> None:
    given = ["no", "yes", "2", "yes", "", "2", "yes", "", "red"]
    assert build_answers(given) == ("no", "yes", "2", "", "red")
    assert build_answers(given, min_count=2) == ("yes", "2", "")
    assert build_answers(given, min_count=4) == ()
    assert build_answers(given, top_k=2) == ("yes", "2")
    assert build_answers(given, top_k=4) == ("no", "yes", "2", "")
    assert build_answers(given, min_count=2, top_k=5) == ("yes", "2", "")
    assert build_answers(given, top_k=0) == ()
    assert build_answers([], min_count=9) == ()


def test_more_than_eight_is_at_least_nine() -> None:
    assert build_answers(["b"] * 8 + ["a"] * 9, min_count=9) == ("a",)
