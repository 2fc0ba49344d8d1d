"""Words of questions and vocabularies: rules, the reference, files."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcan.errors import DataError
from mcan.text.vocabulary import SPECIAL_TOKENS, UNK, Vocabulary, build_tokens, tokenise

TOKENS = ("PAD", "UNK", "is", "it", "red")
ANSWERS = ("yes", "", "2 dogs", "café")
VOCABULARY = Vocabulary(TOKENS, ANSWERS)
FIXTURE = Path(__file__).parents[1] / "fixtures" / "text_and_metric.json"
RECORDED = json.loads(FIXTURE.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("question", "words"),
    RECORDED["tokenisation"] + RECORDED["first_tokenised_train_questions_of_vqa_v2_subset"],
)
def test_tokens_are_those_of_the_reference(question: str, words: list[str]) -> None:
    assert tokenise(question) == words


@given(st.text(alphabet=" \t.,'!?\"()*#:;-/<>PADUNKpadunké1", max_size=30))
def test_tokens_against_successive_substitution(question: str) -> None:
    kept = re.sub(r"[.,'!?\"()*#:;]", "", question.lower())
    words = re.sub(r"[-/]", " ", kept).split()
    assert tokenise(question) == words
    assert not set(words) & set(SPECIAL_TOKENS)


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("What&#39;s the &quot;hat&quot; at AT&T; R&amp;B?", "whats the hat at at&t r&b"),
        ("What’s “this” – café…", "whats this – café"),
        ("图片里的，汽车是iPhone8吗？", "图 片 里 的 汽 车 是 iphone8 吗"),
        ("この犬は・ダー？", "こ の 犬 は ダ ー"),
        ("이 개는 무슨 색입니까?", "이 개는 무슨 색입니까"),
        ("¿Qué es?", "qué es"),
        ("𠀀𠀁", "𠀀 𠀁"),
    ],
)
def test_other_languages_and_typography(question: str, words: str) -> None:
    assert tokenise(question) == words.split()


def test_encode() -> None:
    assert VOCABULARY.encode(["it", "is", "blue", "red"]) == [3, 2, UNK, 4]
    assert VOCABULARY.encode([]) == [UNK]
    assert VOCABULARY.encode(["PAD", "UNK"]) == [UNK, UNK]

    assert VOCABULARY.words == ("is", "it", "red")
    assert VOCABULARY.answer_index == {"yes": 0, "": 1, "2 dogs": 2, "café": 3}


def test_json_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.json"
    path.write_text(VOCABULARY.to_json(), encoding="utf-8")
    assert Vocabulary.read(path) == VOCABULARY


def test_digest_differs_between_vocabularies() -> None:
    others = [
        Vocabulary(TOKENS, ANSWERS[::-1]),
        Vocabulary(TOKENS[:-1], ANSWERS),
        Vocabulary(TOKENS, ANSWERS[:-1]),
        Vocabulary((*TOKENS, "yes"), ANSWERS[1:]),
    ]
    assert len({VOCABULARY.digest, *(other.digest for other in others)}) == 5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not a JSON object with the lists 'tokens' and 'answers'"),
        ("[" * 100_000, "not a JSON object"),
        ('{"answers": []}', r"not a JSON object with the lists .* \('tokens'\)"),
        ('{"tokens": ["PAD", "UNK", 7], "answers": []}', "an entry is not a string"),
        ('{"tokens": ["PAD", "UNK", "a", "a"], "answers": []}', "an entry is repeated"),
        ('{"tokens": ["PAD", "UNK"], "answers": ["", "no", ""]}', "an entry is repeated"),
        ('{"tokens": ["UNK", "PAD"], "answers": []}', r"start with \('UNK', 'PAD'\), expected"),
    ],
)
def test_malformed_json_is_one_line(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.json"
    path.write_text(text)
    with pytest.raises(DataError, match=says) as raised:
        Vocabulary.read(path)
    assert str(raised.value).startswith(f"{path}: ")


def test_build_tokens_in_order_of_appearance() -> None:
    assert build_tokens(["Is it red?", "?", "red-hot: IS it"]) == (*TOKENS, "hot")
    assert build_tokens([]) == ("PAD", "UNK")
