"""index.html, read by an HTML parser, and the five files together."""

from __future__ import annotations

import base64
import json
import shlex
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made import ENVIRONMENT, Made, make, row

from mcan.errors import DataError, RunError
from mcan.report.page import page
from mcan.report.write import write_results
from mcan.tables.call import Call

VOID = {"meta", "img", "br", "link"}
NASTY = '<script>alert("x")</script>'


class Reader(HTMLParser):
    """Checks that tags are balanced; keeps elements with their attributes and their text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts.append((self.open[-1], data))

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text_of(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]


@pytest.fixture
def made(tmp_path) -> Made:
    rows = [row("plain", 1, published={"overall": 60.5}), row(NASTY, 2)]
    made = make(tmp_path, rows, title=f"Title & {NASTY}")
    for name in ("plain", NASTY):
        for seed in (0, 1):
            made.finish(name, seed, 60.0 + seed, {"yes/no": 80.0, "number": 40.0})
            made.log(name, seed, 1000)
    return made


def test_everything_is_escaped_and_balanced(made):
    text = page(made.summary, b"")
    read = Reader(text)
    assert not read.attributes("script")
    assert NASTY not in text
    assert read.text_of("h1") == [f"Title & {NASTY}"]
    assert NASTY in read.text_of("th")
    assert NASTY in read.text_of("h3")
    assert any(NASTY in (svg.get("aria-label") or "") for svg in read.attributes("svg"))


def test_what_the_command_changed_is_stated(made):
    summary = replace(made.summary, call=Call(overrides=(f"name={NASTY}",)))
    assert f"Run with name={NASTY}." in Reader(page(summary, b"")).text_of("p")
    assert "Run with" not in page(made.summary, b"")


def test_the_page_loads_nothing_and_is_accessible(made):
    text = page(made.summary, b"png")
    read = Reader(text)
    (image,) = read.attributes("img")
    assert base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) == b"png"
    assert "overall, yes/no, number" in image["alt"]
    for attribute in ("src", "href"):
        values = [attributes.get(attribute) for _, attributes in read.elements]
        assert all(value is None or value.startswith("data:") for value in values)
    assert "url(" not in text
    assert all(head["scope"] in ("col", "row") for head in read.attributes("th"))
    assert all("role" in svg or svg.get("aria-hidden") == "true" for svg in read.attributes("svg"))
    assert "prefers-color-scheme: dark" in text


def test_the_table_is_there_with_its_notes(made):
    read = Reader(page(made.summary, b""))
    assert {"60.50 ± 0.71", "60.5", "0.00", "2 of 3"} <= set(read.text_of("td"))
    assert f"Not finished: plain (seed 2); {NASTY} (seed 2)." in read.text_of("li")


def test_curves_of_every_run(made):
    read = Reader(page(made.summary, b""))
    charts = [svg for svg in read.attributes("svg") if "role" in svg]
    assert len(charts) == 4  # loss and accuracy of each row
    lines = [line["points"].split() for line in read.attributes("polyline")]
    assert len(lines) == 4 * 3  # a seed that was not started has an empty one
    assert sorted({len(line) for line in lines}) == [0, 5, 200]
    _, _, width, height = map(float, charts[0]["viewbox"].split())
    for line in lines:
        places = [tuple(map(float, place.split(","))) for place in line]
        assert all(0 <= x <= width and 0 <= y <= height for x, y in places)
        assert places == sorted(places, key=lambda place: place[0])
    assert " seed 2 (not finished)" in read.text_of("li")


def test_commands_and_versions(made):
    read = Reader(page(made.summary, b""))
    commands = [shlex.split(text) for text in read.text_of("code")]
    run = made.run("plain", 1)
    assert ["python", "train.py", str(run.base), *run.overrides] in commands
    assert ["python", "eval.py", str(run.folder), "--split", "val"] in commands
    cells = read.text_of("td")
    assert {ENVIRONMENT["torch"], ENVIRONMENT["python"], "2 × Some GPU"} <= set(cells)
    assert "4 runs" in read.text_of("th")


def test_the_command_of_a_submission_names_its_file(tmp_path):
    made = make(tmp_path, [row("A", 1)], seeds=[0], submission=True)
    (command,) = [t for t in Reader(page(made.summary, b"")).text_of("code") if "eval.py" in t]
    file = made.run("A", 0).folder / "submission_val.json"
    assert shlex.split(command)[-2:] == ["--submission", str(file)]


def test_a_page_before_any_run(tmp_path):
    text = page(make(tmp_path, [row("A", 1)]).summary, b"")
    assert "nothing logged" in Reader(text).text_of("text")
    only_published = [{"name": "A", "runs": False, "published": {"overall": 60.0}}]
    assert "<h2>" not in page(make(tmp_path, only_published).summary, b"")


def test_the_page_of_a_large_table_is_small(tmp_path):
    names = [f"row {n}" for n in range(48)]
    made = make(tmp_path, [row(name, n + 1) for n, name in enumerate(names)])
    for name in names:
        for seed in range(3):
            made.log(name, seed, 400)
    assert len(page(made.summary, b"")) < 2e6


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_all_files_have_the_same_bytes_when_written_again(made, tmp_path):
    folder = tmp_path / "deep" / "results"
    given = (made.table, made.runs, made.outcomes, made.filled)
    write_results(folder, *given)
    first = contents(folder)
    assert first.keys() == {"table.md", "table.csv", "table.json", "table.png", "index.html"}
    assert base64.b64encode(first["table.png"]) in first["index.html"]
    write_results(folder, *given)
    assert contents(folder) == first


def test_a_line_that_is_being_written_is_left_out(made):
    log = made.run("plain", 0).folder / "metrics.jsonl"
    before = page(made.summary, b"")
    log.write_text(log.read_text() + '{"kind": "train", "step": 9')
    assert page(made.summary, b"") == before


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("metrics.jsonl", "{}\n", "metrics.jsonl, line 1: not a line that train.py wrote"),
        ("metrics.jsonl", "[1]\nx\n", "metrics.jsonl, line 1: not a line that train.py wrote"),
        ("environment.json", '{"starts": []}', "environment.json: not the JSON that train.py"),
        ("environment.json", "x", "environment.json: not the JSON that train.py wrote"),
    ],
)
def test_a_damaged_log_is_told_in_a_sentence_and_nothing_is_written(
    made, tmp_path, name, content, told
):
    (made.run("plain", 0).folder / name).write_text(content)
    with pytest.raises(RunError, match=told):
        write_results(tmp_path / "results", made.table, made.runs, made.outcomes, {})
    assert not (tmp_path / "results").exists()


def test_a_folder_that_cannot_be_written(made, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/table\.md: could not be written"):
        write_results(tmp_path / "file", made.table, made.runs, made.outcomes, {})


def test_losses_that_are_no_numbers_to_draw(made):
    log = made.run("plain", 0).folder / "metrics.jsonl"
    log.write_text(json.dumps({"kind": "train", "step": 50, "loss": 0.0}) + "\n")
    Reader(page(made.summary, b""))
