"""Every reader of files from outside or from disk, and small files that it accepts."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import foreign
import h5py
import made
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
import torchvision
from PIL import Image
from runs import ROOT, entry_point, load, make_lab
from safetensors.torch import save_file
from store_toys import make_images, write_store
from test_easy_vqa import make_wheel
from vqa_toys import TEST, TRAIN, VAL, annotations_of, questions_of, write_json

import mcan
from mcan import benchmarking
from mcan.config import dump_config, load_config
from mcan.data.store import open_store
from mcan.errors import DataError
from mcan.preparation.extractors import GridExtractor
from mcan.tables import running, writing

# A reader: its name; the files that it is given; those of them that are damaged in turn (all, if
# empty); the command, or a function of this module, that reads them; and whether a checksum covers
# all `bytes` or all `values`, which the command then prints.
TABLE = """
config | mine.yaml config.yaml | | read_config mine.yaml
prepared folder | prepared | prepared/* | scripts/verify prepared | bytes
store, opened | store.h5 | | read_store store.h5 | values
store, verified | large.h5 | | read_store large.h5 whole | values
checkpoint | two.pt | | scripts/verify two.pt | bytes
checkpoint of format 1 | one.pt DATA | one.pt | EVAL one.pt
run, resumed | runs/a DATA | runs/a/*.* runs/a/checkpoints/* | LONGER --resume
runs, listed | runs/a | runs/a/*.* runs/a/checkpoints/* | scripts/runs
train.init_from | one.pt DATA | one.pt | START
exported folder | out DATA | out/* | EVAL out
exported vocabulary | out | out/vocabulary.json | read_vocabulary out | values
authors' checkpoint | state.pkl check.npz | | scripts/import_checkpoint state.pkl AUTHORS
authors' vocabulary | state.npz check.npz words.json answers.json | | VOCABULARY
weights of an extractor | weights.pth | | read_weights weights.pth
word vectors, text | vectors.txt prepared | vectors.txt prepared/v*.json | VECTORS vectors.txt
word vectors, .gz | v.vec.gz prepared | v.vec.gz | VECTORS v.vec.gz
word vectors, .zip | v.zip prepared | v.zip | VECTORS v.zip
records, JSON | r.json | | RECORDS r.json
records, JSON lines | r.jsonl | | RECORDS r.jsonl
records, CSV | r.csv | | RECORDS r.csv
records, TSV | r.tsv | | RECORDS r.tsv
records, Parquet | r.parquet | | RECORDS r.parquet
records, .gz | r.json.gz | | RECORDS r.json.gz
records, .zip | q.zip | | RECORDS q.zip
raw files of custom | custom | custom/* | data/custom/prepare RAW custom
raw files of vqa_v1 | vqa_v1 | vqa_v1/* | data/vqa_v1/prepare RAW vqa_v1
raw files of vqa_v2 | vqa_v2 | vqa_v2/* | data/vqa_v2/prepare RAW vqa_v2
raw files of vqa_cp_v1 | vqa_cp_v1 | vqa_cp_v1/* | data/vqa_cp_v1/prepare RAW vqa_cp_v1
raw files of vqa_cp_v2 | vqa_cp_v2 | vqa_cp_v2/* | data/vqa_cp_v2/prepare RAW vqa_cp_v2
raw files of ok_vqa | ok_vqa | ok_vqa/* | data/ok_vqa/prepare RAW ok_vqa
raw files of vizwiz | vizwiz | vizwiz/* | data/vizwiz/prepare RAW vizwiz
raw files of easy_vqa | w.zip sha256 | w.zip | prepare_easy_vqa w.zip | bytes
Visual Genome | vqa_v2 pairs.json coco.json | pairs.json coco.json | GENOME
features, .npz | npz | npz/* | FEATURES npz
features, .npy | npy | npy/* | FEATURES npy
features, .pt | pt | pt/* | FEATURES pt
features, .pth | pth | pth/* | FEATURES pth
features, .safetensors | safetensors | safetensors/* | FEATURES safetensors
features, bottom-up TSV | bottom.tsv | | FEATURES bottom.tsv
features, LXMERT TSV | lxmert.tsv | | FEATURES lxmert.tsv
features, VinVL TSV | vinvl.tsv | | FEATURES vinvl.tsv
features, HDF5 | x.h5 x_imgid2idx.pkl | | FEATURES x.h5
features, HDF5 of ranges | y.h5 y_imgid2idx.pkl | | FEATURES y.h5
features, HDF5 of groups | g.h5 | | FEATURES g.h5
features, numbered HDF5 | n | n/* | FEATURES n
sizes and selected ids | npz sizes.json ids.txt | sizes.json ids.txt | CHOSEN
features, interrupted | npy o.h5.partial | o.h5.partial/* | FEATURES npy --resume
images in a folder | pictures | pictures/* | PIXELS pictures
images in Parquet | r.parquet | | PIXELS r.parquet
results scored | results.json annotations.json questions.json | | SCORE
runs compared | runs/a by_hand DATA | runs/a/p*/*/* runs/a/*.yaml by_hand/* | COMPARE
results of a model card | runs/a | runs/a/p*/*/m* | scripts/export runs/a o
questions to submit | one.pt ids.json DATA | ids.json | SUBMIT
regions of interest | one.pt targets.json DATA | targets.json | read_targets one.pt targets.json
table and outcomes | table | table/*.yaml table/runs/*/*.json* | make_table table
benchmark record | b | b/* | save_record b
"""
SHORT = {
    "DATA": "prepared images.h5 config.yaml",
    "AUTHORS": "--output o.pt --heads 4 --check check.npz",
    "VOCABULARY": "scripts/import_checkpoint state.npz AUTHORS --questions words.json --answers "
    "answers.json",
    "START": "train config.yaml name=b train.max_steps=1 'train.init_from={checkpoint: one.pt}'",
    "VECTORS": "scripts/extract_word_vectors --vocabulary prepared/vocabulary.json --output o.txt",
    "RECORDS": "data/custom/prepare --carve-validation 0 --output o --files train",
    "RAW": "--output o --min-answer-count 1 --raw",
    "GENOME": "data/vqa_v2/prepare RAW vqa_v2 --visual-genome pairs.json coco.json",
    "FEATURES": "scripts/import_features --output o.h5 --workers 0",
    "CHOSEN": "FEATURES --sizes sizes.json --images ids.txt npz",
    "PIXELS": "scripts/extract_features pixels --size 8 8 --output o.h5 --workers 0",
    "SCORE": "scripts/score results.json --annotations annotations.json --questions questions.json",
    "LONGER": "train config.yaml name=a train.epochs=2",
    "COMPARE": "scripts/compare runs/a by_hand data.prepared=prepared",
    "EVAL": "eval data.prepared=prepared data.images=[images.h5] --output o",
    "SUBMIT": "EVAL one.pt --submission s.json --questions ids.json",
}


class Reader(NamedTuple):
    """`damaged` are patterns of files in a folder with copies of `given`."""

    given: tuple[str, ...]
    damaged: tuple[str, ...]
    command: tuple[str, ...]
    sealed: str = ""

    def run(self) -> Any:
        """Read the files of the working folder as the command does."""
        name, *args = self.command
        if name in globals():
            return globals()[name](*args)
        module, sys.argv = entry_point(name), [f"{name}.py", *args]
        return module.main() if hasattr(module, "main") else module.RECIPE.prepare()


def read_table() -> dict[str, Reader]:
    readers = {}
    for line in TABLE.strip().splitlines():
        name, *cells = (cell.strip() for cell in line.split("|"))
        for _ in range(2):  # a short form may contain another
            words = (cell.split(" ") for cell in cells)
            cells = [" ".join(SHORT.get(word, word) for word in each) for each in words]
        given, damaged, command, *sealed = cells
        patterns = shlex.split(damaged) or shlex.split(given)
        readers[name] = Reader(shlex.split(given), patterns, shlex.split(command), *sealed)
    return readers


# ----------------------------------------------------------------- readers that are no commands


def read_config(path: str) -> None:
    print(dump_config(load_config(path)))


def read_store(path: str, whole: str = "") -> None:
    store = open_store(path)
    if whole:
        store.verify()
    tables = [store.rows, store.boxes, store.image_ids, store.offsets, store.sizes]
    digests = [hashlib.sha256(np.ascontiguousarray(table)).hexdigest() for table in tables]
    print(digests, store.provenance, [np.shape(table) for table in tables])


def read_vocabulary(folder: str) -> None:
    print(mcan.load(folder, device="cpu").vocabulary)


def read_weights(path: str) -> None:
    GridExtractor("shufflenet_v2_x0_5", path)


def prepare_easy_vqa(wheel: str) -> None:
    args = ["--raw", wheel, "--output", "o"]
    entry_point("data/easy_vqa/prepare").main(args, sha256=Path("sha256").read_text())


def read_targets(checkpoint: str, path: str) -> None:
    model = mcan.load(checkpoint, device="cpu")
    entry_point("scripts/analyse_attention").read_targets(Path(path), model, model.split())


def make_table(folder: str) -> None:
    """The command without its trainings and plots."""
    running.run_all = lambda *_: []
    writing.write_figures = lambda *_: None
    arguments = [f"{folder}/table_1.yaml", "--runs", f"{folder}/runs", "--output", "o"]
    entry_point("scripts/reproduce").main(arguments)


def save_record(folder: str) -> None:
    source = next((ROOT / "docs/benchmarks").rglob("*.json"))
    benchmarking.save(json.loads(source.read_text()) | {"what": "new"}, Path(folder))


# ------------------------------------------------------------------------------------- the files


def make_files(folder: Path) -> None:
    """All files, in `folder`, which is the working folder."""
    changes = {"model": {"image": {"boxes": True}}, "train": {"epochs": 1}}
    lab = make_lab(folder, changes, boxes=True)
    steps = [lab.train("a"), lab.eval("runs/a"), lab.eval("runs/a", "--output", "by_hand")]
    steps += [lab.execute("scripts/export", ["runs/a", "out"])]
    assert not any(step.status for step in steps), steps
    Path("mine.yaml").write_text("_base_: [config.yaml]\nname: b\nmodel: {depth: 2}\n")
    write_store(Path("store.h5"), make_images(list(range(9))))
    write_store(Path("large.h5"), make_images([f"i{n}" for n in range(40)], dim=9))
    shutil.copy(next(Path("runs/a/checkpoints").glob("step*")), "two.pt")
    torch.save(load(Path("two.pt")) | {"format": 1}, "one.pt")
    write_vectors()
    write_authors()
    for name in ("r.json", "r.jsonl", "r.csv", "r.tsv", "r.parquet", "r.json.gz", "q.zip/r.json"):
        write_records(Path(name))
    for name in ("custom", "vqa_v1", "vqa_v2", "vqa_cp_v1", "vqa_cp_v2", "ok_vqa", "vizwiz"):
        write_raw(name, name == "vizwiz", "cp" in name)
    Path("sha256").write_text(make_wheel(Path("w.zip")))
    write_features()
    Path("pictures").mkdir()
    for suffix in (".png", ".jpg", ".gif", ".bmp", ".tif", ".webp", ".ppm", ".jp2", ".tga"):
        draw(Path(f"pictures/{suffix[1:]}{suffix}"))
    write_json(Path("results.json"), [{"question_id": row[0], "answer": "yes"} for row in TRAIN])
    write_json(Path("annotations.json"), {"annotations": annotations_of(TRAIN)})
    write_json(Path("questions.json"), {"questions": questions_of(TRAIN)})
    predictions = json.loads(Path("by_hand/predictions.json").read_text())
    ids = [entry["question_id"] for entry in predictions]
    write_json(Path("ids.json"), [{"question_id": i, "image_id": 1, "question": "x"} for i in ids])
    write_json(Path("targets.json"), {str(ids[0]): {"asked": [0]}, str(ids[1]): {"asked": [0, 0]}})
    write_outcomes()
    Path("b").mkdir()
    shutil.copy(next((ROOT / "docs/benchmarks").rglob("*.json")), "b/earlier.json")


def write_vectors() -> None:
    text = "".join(f"word{n} {n} 1e-3 -2.5\n" for n in range(9))
    for name, head in (("vectors.txt", ""), ("v.vec.gz", "9 3\n"), ("v.zip/v.txt", "")):
        write_json(Path(name), head + text)


def write_authors() -> None:
    recorded = dict(np.load(ROOT / "tests/fixtures/mcan_forward.npz"))
    state = {name: value for name, value in recorded.items() if name.startswith("sd/")}
    tensors = {name[3:]: torch.from_numpy(value) for name, value in state.items()}
    torch.save({"state_dict": tensors}, "state.pkl")
    np.savez("state.npz", **state)
    np.savez("check.npz", **{name: recorded[name] for name in recorded.keys() - state})
    words = " ".join(f"w{number}" for number in range(48))
    write_json(Path("words.json"), [{"question_id": 1, "image_id": 1, "question": words}])
    write_json(Path("answers.json"), [{f"a {number}": number for number in range(40)}, {}])
    torch.save(torchvision.models.shufflenet_v2_x0_5(weights=None).state_dict(), "weights.pth")


def draw(path: Path) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path.read_bytes()


def write_records(path: Path) -> None:
    rows = [{"id": i, "image": f"{n}.jpg", "question": q, "answer": a[0]} for i, n, q, a in TRAIN]
    if path.suffix == ".parquet":
        images = [{"bytes": draw(Path("r.png")), "path": row.pop("image")} for row in rows]
        rows = [row | {"image": image} for row, image in zip(rows, images, strict=True)]
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix in (".csv", ".tsv"):
        lines = [rows[0].keys(), *(row.values() for row in rows)]
        separator = ";" if path.suffix == ".csv" else "\t"
        path.write_text("".join(separator.join(map(str, line)) + "\n" for line in lines))
    else:
        rows[0]["answer"] = json.dumps({"yes": 1.0, "no": 0.3})
        write_json(path, "\n".join(map(json.dumps, rows)) if path.suffix == ".jsonl" else rows)


def write_raw(name: str, vizwiz: bool, bare: bool) -> None:
    splits = entry_point(f"data/{name}/prepare").RECIPE.splits
    for files, rows in zip(splits.values(), (TRAIN, VAL, TEST, TEST[1:]), strict=False):
        asked, answered = questions_of(rows), annotations_of(rows)
        if vizwiz:
            asked = [{"image": f"{n}.jpg", "question": q} for n, _, q, _ in rows]
            kept = ("answers", "answer_type", "answerable") if rows is not TEST else ()
            pairs = zip(asked, answered, strict=True)
            asked = [a | {key: b.get(key, 1) for key in kept} for a, b in pairs]
        pair: tuple[Any, ...] = (asked, answered)
        if not (vizwiz or bare):
            pair = {"questions": asked}, {"annotations": answered}
        for file, content in zip(files, pair, strict=False):
            write_json(Path(name) / file, content)
    pair = [{"image_id": 1, "qa_id": 5, "question": "is it?", "answer": "yes"}]
    write_json(Path("pairs.json"), [{"id": 1, "qas": pair}])
    write_json(Path("coco.json"), [{"image_id": 1, "coco_id": 1}, {"image_id": 2, "coco_id": None}])


def write_features() -> None:
    images, equal = foreign.make_images(3), foreign.make_images(3, rows=4)
    foreign.write_npz(Path("npz"), images)
    foreign.write_grids(Path("pth"), {i.number: np.ones((8, 2, 3), np.float32) for i in images})
    for suffix in ("npy", "pt", "safetensors"):
        Path(suffix).mkdir()
        for image in images:
            path = Path(suffix) / f"{image.coco_name}.{suffix}"
            record = {"x": image.features, "bbox": image.boxes, "image_w": 900, "image_h": 900}
            tensors = {name: torch.tensor(value) for name, value in record.items()}
            if suffix == "npy":
                np.save(path, image.features)
            else:
                (torch.save if suffix == "pt" else save_file)(tensors, path)
    foreign.write_bottom_up(Path("bottom.tsv"), images)
    foreign.write_lxmert(Path("lxmert.tsv"), images)
    shutil.copy(ROOT / "tests/fixtures/features/vinvl.tsv", "vinvl.tsv")
    foreign.write_fixed(Path("x.h5"), equal)
    foreign.write_adaptive(Path("y.h5"), images)
    Path("n").mkdir()
    foreign.write_numbered_objects(Path("n"), images)
    with h5py.File("g.h5", "w") as file:
        for image in images:
            file[f"{image.number}/features"] = image.features
            file[f"{image.number}/boxes"] = image.scaled_boxes
    sizes = [{"id": image.number, "width": 900, "height": 900} for image in images]
    write_json(Path("sizes.json"), {"images": sizes})
    Path("ids.txt").write_text("".join(f"{image.number}\n" for image in images[:2]))
    broken = Path("npy") / f"{images[0].coco_name}.npy"
    content = broken.read_bytes()
    broken.write_bytes(b"")
    with suppress(DataError):
        entry_point("scripts/import_features").main(["--output", "o.h5", "--workers", "0", "npy"])
    broken.write_bytes(content)


def write_outcomes() -> None:
    rows = [made.row("a", 1, published={"overall": 60.0}), made.row("s", 2, submission=True)]
    table = made.make(Path("table"), rows, seeds=[0])
    table.finish("a", 0, 61.5, {"yes/no": 80.0, "number": 40.0})
    table.train("a", 0, {1: 50.0, 2: 60.5})
    table.finish("s", 0, None)
    table.score("s", overall=70.0)
