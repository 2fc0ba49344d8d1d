"""Cells of models of timm, by the command, against timm's own transform and output; and training on
them. Without network and published weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import ROOT, Lab
from test_extraction import SIZES, draw, main
from torch import Tensor
from vqa_toys import load_recipe, prepare, write_json

import mcan
from mcan.data.store import ImageStore, open_store
from mcan.errors import DataError
from mcan.preparation.extraction import extractor_of
from mcan.preparation.extractors import GridExtractor
from mcan.preparation.images import Resize, read_image

timm = pytest.importorskip("timm")
MODELS = [
    ("vit_tiny_patch16_224", 1, (14, 14)),  # a class token
    ("test_vit2", 1, (10, 10)),  # a register
    ("vit_small_patch16_dinov3", 5, (16, 16)),  # both, and rotary positions
    ("vit_base_patch16_siglip_224", 0, (14, 14)),  # patches alone
    ("convnext_atto", None, (7, 7)),
    ("swin_tiny_patch4_window7_224", None, (7, 7)),  # a map with channels last
    ("vit_small_patch14_reg4_dinov2", 5, (37, 37)),
]
SLOW = {name for name, *_ in MODELS[2:] if name != "convnext_atto"}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven images, 0.png to 6.png, of `SIZES`."""
    path = tmp_path / "images"
    path.mkdir()
    for number, size in enumerate(SIZES):
        draw(*size, seed=number).save(path / f"{number}.png")
    return path


def saved(path: Path, name: str, **options: Any) -> Any:
    """A model with random weights of its own, which are saved in `path`."""
    torch.manual_seed(7)
    model = timm.create_model(name, **options).eval()
    for parameter in model.parameters():  # so that scales and registers do something
        torch.nn.init.normal_(parameter, parameter.mean().item(), 0.02)
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path)
    return model


def run(folder: Path, name: str, weights: Any, *more: str) -> ImageStore:
    output = folder.with_name("out.h5")
    output.unlink(missing_ok=True)
    options = ["--backbone", f"timm:{name}", "--weights", str(weights), "--output", str(output)]
    assert main(["grid", str(folder), *options, "--workers=0", "--device=cpu", *more]) == 0
    return open_store(output)


def cells(model: Any, prefix: int | None, images: Tensor) -> Tensor:
    """(B, h · w, D) of what timm computes."""
    with torch.inference_mode():
        found = model.forward_features(images)
    if prefix is not None:
        return found[:, prefix:]
    channels_last = found.shape[3] == model.num_features
    return found.flatten(1, 2) if channels_last else found.flatten(2).transpose(1, 2)


@pytest.mark.parametrize(
    ("name", "prefix", "grid"),
    [pytest.param(*m, marks=pytest.mark.slow if m[0] in SLOW else ()) for m in MODELS],
)
def test_cells_are_the_output_of_timm(
    tmp_path: Path, folder: Path, name: str, prefix: int | None, grid: tuple[int, int]
) -> None:
    for number in (2, 4, 5):
        (folder / f"{number}.png").unlink()
    path = tmp_path / "mine.safetensors"
    model = saved(path, name)
    config = timm.data.resolve_data_config(model=model)
    transform = timm.data.create_transform(**config)
    images = torch.stack([transform(Image.open(file)) for file in sorted(folder.iterdir())])
    expected = cells(model, prefix, images).numpy()
    assert expected.std(1).min() > 1e-3
    store = run(folder, name, path, "--float32", "--batch-size=3")
    assert store.grid_shapes.tolist() == [list(grid)] * 4
    assert store.sizes.tolist() == [list(SIZES[number]) for number in (0, 1, 3, 6)]
    np.testing.assert_allclose(store.rows.reshape(expected.shape), expected, atol=1e-5, rtol=1e-5)
    halves = run(folder, name, path).rows.reshape(expected.shape)
    assert halves.dtype == np.float16
    np.testing.assert_allclose(halves, expected, atol=1e-5, rtol=2**-10)
    how = store.provenance["extractor"]
    assert how["grid"] == f"timm:{name}"
    assert how["preprocessing"] == {
        k: list(v) if type(v) is tuple else v for k, v in config.items()
    }
    assert (how["weights"]["file"], len(how["weights"]["sha256"])) == ("mine.safetensors", 64)


@pytest.mark.parametrize("crop", ["center", "border", "squash"])
def test_another_crop(tmp_path: Path, folder: Path, crop: str) -> None:
    """Also of a picture, by what the store says of itself."""
    model = saved(tmp_path / "mine.pth", "test_vit2", num_classes=7)
    store = run(folder, "test_vit2", tmp_path / "mine.pth", "--float32", "--crop", crop)
    config = timm.data.resolve_data_config({"crop_mode": crop, "crop_pct": 1.0}, model=model)
    transform = timm.data.create_transform(**config)
    for number in (0, 1, 6):
        image = transform(Image.open(folder / f"{number}.png"))[None]
        expected = cells(model, 1, image)[0]
        np.testing.assert_allclose(store.image(number)[0], expected, atol=1e-5, rtol=1e-5)
    extract = extractor_of(store.made_by, tmp_path / "mine.pth", torch.device("cpu"))
    found = extract(Image.open(folder / "6.png"))
    assert found.grid_shape == (10, 10)
    np.testing.assert_allclose(found.boxes, store.image(6)[1])
    np.testing.assert_allclose(found.rows, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(DataError, match="101 x 1 pixels are too narrow to be cropped"):
        extract(Image.new("RGB", (101, 1)))


@pytest.mark.parametrize("size", [(300, 200), (100, 250), (90, 90)])
@pytest.mark.parametrize("crop", [None, "center", "border", "squash"])
def test_boxes_are_where_the_cells_are(crop: str | None, size: tuple[int, int]) -> None:
    """In an image whose red says x and whose green says y; bands beside it have no area."""
    y, x = np.mgrid[: size[1], : size[0]].astype(np.float32)
    ramps = [255 * (x + 0.5) / size[0], 255 * (y + 0.5) / size[1], 0 * x]
    extractor = GridExtractor("timm:test_vit", "random", crop=crop)
    assert extractor.transform is not None
    seen = extractor.transform(Image.fromarray(np.stack(ramps, 2).round().astype(np.uint8)))
    middles = np.asarray(seen.reduce(16), np.float64).reshape(100, 3)[:, :2] / 255
    boxes = extractor.cell_boxes(size, (10, 10)).numpy()
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    whole = areas > 0.99 * areas.max()
    assert (whole.sum() < 100) == (crop == "border" and size != (90, 90))
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    np.testing.assert_allclose(centres[whole], middles[whole], atol=0.01)


def test_convolutions_keep_the_aspect_ratio_if_asked(tmp_path: Path, folder: Path) -> None:
    model = saved(tmp_path / "mine.pth", "convnext_atto")
    sides = ["--short-side", "64", "--long-side", "128"]
    store = run(folder, "convnext_atto", tmp_path / "mine.pth", "--float32", *sides)
    assert store.grid_shapes.tolist() == [[2, 3], [3, 2], [2, 3], [2, 2], [2, 4], [2, 3], [1, 4]]
    pixels = torch.tensor(read_image(folder / "6.png", 6, Resize(64, 128)).rows) / 255
    mean, std = (torch.tensor(model.pretrained_cfg[k])[:, None, None] for k in ("mean", "std"))
    expected = cells(model, None, ((pixels - mean) / std)[None])[0]
    np.testing.assert_allclose(store.image(6)[0], expected, atol=1e-5, rtol=1e-5)
    extract = extractor_of(store.made_by, tmp_path / "mine.pth", torch.device("cpu"))
    found = extract(Image.open(folder / "6.png"))
    np.testing.assert_allclose(found.rows, expected, atol=1e-5, rtol=1e-5)


def test_published_weights_of_a_picture_are_not_downloaded() -> None:
    made_by = GridExtractor("timm:test_vit", "random").settings | {"resize": None}
    made_by["weights"] = {"published": "timm/test_vit.r160_in1k"}
    with pytest.raises(
        DataError, match=r"timm/test_vit\.r160_in1k, .* is not on this machine; ext"
    ):
        extractor_of(json.dumps(made_by), None, torch.device("cpu"))


def test_shards_and_resuming_make_the_whole(folder: Path) -> None:
    whole = run(folder, "test_vit2", "random", "--batch-size=1")
    rows = [np.array(whole.image(number)[0]) for number in range(7)]
    assert whole.provenance["extractor"]["weights"] == {"random": True, "seed": 0}
    digest = whole.digest
    for part in (1, 2):
        shard = run(folder, "test_vit2", "random", "--batch-size=1", f"--shard={part}/2")
        for place, number in enumerate(range(part - 1, 7, 2)):
            np.testing.assert_array_equal(shard.image(place)[0], rows[number])
    Image.new("RGB", (101, 1)).save(folder / "7.png")
    (folder / "8.png").touch()
    with pytest.raises(DataError, match=r"2 broken .* 101 x 1 pixels are too narrow to be cropped"):
        run(folder, "test_vit2", "random", "--batch-size=1")
    with pytest.raises(DataError, match="was begun with extractor ="):
        run(folder, "test_vit2", "random", "--batch-size=1", "--resume", "--crop=squash")
    resumed = run(folder, "test_vit2", "random", "--batch-size=1", "--resume", "--skip-broken")
    assert resumed.digest == digest


REFUSED = [
    ("vit_tinyy_patch16_224", "random", "", r"is not a model of timm; there are vit_tiny_patch16_"),
    ("test_vit.nothing", "random", "", r"is not a model of timm; there are test_vit"),
    ("hf-hub:timm/test_vit", "random", "", "is not a model of timm"),
    ("", "random", "", "is not a model of timm"),
    ("crossvit_tiny_240", "random", "", "timm:crossvit_tiny_240: computes no map of features"),
    ("test_vit", "random", "--short-side=64", "takes only images of one size; leave out --short"),
    ("test_vit", "random", "--crop=squash --long-side=64", "--crop is for backbones of timm, with"),
    ("test_vit", "{}/vit2.pth", "", r"vit2\.pth: is not of this model: it "),
    ("convnext_atto", "{}/vit2.pth", "", r"vit2\.pth: is not of this model: it lacks 'stem"),
    ("test_vit", "{}/text.safetensors", "", r"text\.safetensors: not a state dictionary"),
    ("test_vit", "{}/text.pth", "", r"text\.pth: not a state dictionary"),
    ("test_vit", "{}/nowhere.pth", "", r"nowhere\.pth: no such file"),
    ("test_vit", "DEFAULT", "", r"timm:test_vit: its weights could not be downloaded"),
    ("convnext_atto_rms", "DEFAULT", "", r"timm publishes no weights for it; give a file"),
]


@pytest.mark.parametrize(("name", "weights", "more", "message"), REFUSED)
def test_refused(
    tmp_path: Path, folder: Path, name: str, weights: str, more: str, message: str
) -> None:
    saved(tmp_path / "vit2.pth", "test_vit2")
    for suffix in ("pth", "safetensors"):
        (tmp_path / f"text.{suffix}").write_text("not weights")
    with pytest.raises(DataError, match=message) as error:
        run(folder, name, weights.format(tmp_path), *more.split())
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.glob("out.h5*")] == []


def test_timm_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(DataError, match=r"timm:test_vit: needs timm: pip install -e '\.\[timm\]'"):
        GridExtractor("timm:test_vit", "random")
    with pytest.raises(DataError, match="--crop is for backbones of timm"):
        GridExtractor("resnet18", "random", crop="squash")


SMALLER = "model.hidden_size=64 model.depth=2 model.reduction_size=64 model.fusion_size=64"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("convnext_atto", SMALLER),
        pytest.param("convnext_atto", "", marks=pytest.mark.slow),
        pytest.param("vit_tiny_patch16_224", "", marks=pytest.mark.slow),
    ],
)
def test_training_on_the_cells(tmp_path: Path, folder: Path, name: str, changes: str) -> None:
    """A step of MCAN-small, or a smaller one, with positions; then a picture is asked about."""
    run(folder, name, "random")
    rows = [{"question": "Is it red?", "image": f"{n % 7}.png", "answer": "yes"} for n in range(9)]
    questions = write_json(tmp_path / "questions.json", rows)
    prepare(load_recipe("custom"), tmp_path, "--files", "train", str(questions))
    config = ROOT / "configs/custom/mcan_small_clip.yaml"
    data = ["data.prepared=prepared", "data.images=[out.h5]"]
    step = ["train.max_steps=1", "train.batch_size=4", "train.device=cpu"]
    result = Lab(tmp_path).execute("train", [str(config), *data, *step, *changes.split()])
    assert result.status == 0, result.err
    model = mcan.load(tmp_path / "runs/custom_mcan_small_clip", device="cpu")
    assert model.answer(folder / "3.png", "Is it red?")[0].text == "yes"
