"""Merging against its statement on leaves; dumped configs against the config and plain PyYAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mcan.config import config_from_dict, dump_config, load_config
from mcan.config.yaml_files import Place, merge, parse, to_yaml

PLACE = Place("x.yaml")

keys = st.sampled_from("abc")
texts = st.text().filter(lambda text: not text.startswith("~/"))  # else the home folder is read
scalars = st.none() | st.booleans() | st.integers() | texts | st.floats(allow_nan=False)
leaves = scalars | st.lists(scalars, max_size=3)
below = st.recursive(leaves, lambda b: st.dictionaries(keys, b, min_size=1), max_leaves=8)
trees = st.dictionaries(keys, below)


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """The values that are no mappings, by path."""
    if not isinstance(tree, dict):
        return {path: tree}
    return {p: v for key, item in tree.items() for p, v in _leaves(item, (*path, key)).items()}


def stated(tree: Any) -> Any:
    return parse(to_yaml(tree), PLACE)


@settings(deadline=None)
@given(trees, trees)
def test_merging_keeps_what_is_above_and_what_it_does_not_touch(base, over):
    merged = merge(stated(base), stated(over))
    above = _leaves(over)

    def hidden(path: tuple[str, ...]) -> bool:
        return any(path[: len(upper)] == upper[: len(path)] for upper in above)

    untouched = {path: value for path, value in _leaves(base).items() if not hidden(path)}
    assert _leaves(merged) == untouched | above


@settings(deadline=None)
@given(st.dictionaries(texts, below))
def test_written_yaml_is_read_back_equal(tree):
    assert stated(tree) == tree


@given(st.floats(allow_nan=False), st.sampled_from(["{!r}", "{:.17e}", "{:.17E}", "{:.17g}"]))
def test_every_finite_way_to_write_a_number_is_read(number, form):
    text = form.format(number).replace("inf", ".inf").replace("INF", ".INF")
    value = parse(text, PLACE)
    assert isinstance(value, (int, float))
    assert value == number


paths = st.text(st.characters(codec="utf-8"))
rates = st.floats(1e-300, 1e300)
fractions = st.floats(0, 1, exclude_max=True)
fixed = st.fixed_dictionaries
word_vectors = st.none() | fixed({"path": paths})
plateau = fixed({"warmup_epochs": st.integers(0, 3)})
cosine = fixed({"name": st.just("cosine"), "warmup_epochs": st.floats(0, 3), "final": fractions})
configs = fixed(
    {
        "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]*", fullmatch=True),
        "data": fixed({"prepared": paths, "images": st.lists(paths, min_size=1, max_size=3)}),
        "model": fixed({"dropout": fractions, "question": fixed({"word_vectors": word_vectors})}),
        "optimizer": fixed({"lr": rates, "betas": st.tuples(fractions, fractions)}),
        "schedule": plateau | cosine,
        "train": fixed({"epochs": st.integers(3), "clip_norm": st.none() | rates}),
    }
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dump") / "config.yaml"


@settings(max_examples=60, deadline=None)
@given(configs)
def test_dumped_configs_are_read_back_equal(file, data):
    config = config_from_dict(data, "generated")
    text = dump_config(config)
    file.write_bytes(text.encode())
    assert load_config(file) == config
    assert yaml.safe_load(text) == config.model_dump(mode="json")
