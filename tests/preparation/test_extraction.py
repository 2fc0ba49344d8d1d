"""Decoding of images; cells against a hook on the backbone, regions against torchvision's own
detections and the parts run by hand; weights; and the command, from a folder to a store."""

from __future__ import annotations

import os
import pickle
import runpy
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as T
from foreign import Bomb
from PIL import Image
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.ops import box_iou

from mcan.data.arrays import array_to_ids
from mcan.data.store import StoreGroup, open_store
from mcan.errors import DataError
from mcan.preparation import extractors
from mcan.preparation.extraction import extractor_of
from mcan.preparation.extractors import BoxSelection, GridExtractor, RegionExtractor, choose_weights
from mcan.preparation.images import Resize, list_images, open_rgb, read_image
from mcan.preparation.names import image_id

main = runpy.run_path(str(Path(__file__).parents[2] / "scripts/extract_features.py"))["main"]
DETECTOR = "fasterrcnn_mobilenet_v3_large_320_fpn"
TASKS = {
    "grid": ["--backbone", "resnet18", "--short-side", "64", "--long-side", "128"],
    "region": ["--detector", DETECTOR, "--short-side", "64"],
}


SIZES = [(96, 64), (64, 96), (96, 64), (80, 80), (128, 64), (96, 64), (150, 70)]


def draw(width: int, height: int, seed: int) -> Image.Image:
    """Coloured patches."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven images, COCO_x_000000000000.png to ..., of `SIZES`."""
    path = tmp_path / "images"
    (path / "sub").mkdir(parents=True)
    for number, size in enumerate(SIZES):
        place = path / "sub" if number == 6 else path
        draw(*size, seed=number).save(place / f"COCO_x_{number:012d}.png")
    return path


def test_sizes_keep_the_aspect_ratio() -> None:
    resize = Resize(600, 1000)
    assert (resize(640, 480), resize(480, 640)) == ((800, 600), (600, 800))
    assert (resize(640, 427), resize(2000, 100)) == ((899, 600), (1000, 50))
    assert (resize(5000, 1), resize(1, 1)) == ((1000, 1), (600, 600))


@pytest.mark.parametrize(
    ("mode", "suffix", "colour", "expected"),
    [
        ("RGB", "png", (9, 8, 7), (9, 8, 7)),
        ("L", "jp2", 9, (9, 9, 9)),
        ("1", "png", 1, (255, 255, 255)),
        ("P", "gif", 0, (0, 0, 0)),
        ("CMYK", "tif", (0, 255, 255, 0), (255, 0, 0)),
        ("YCbCr", "tif", (90, 128, 128), (90, 90, 90)),
        ("I;16", "png", 257 * 90, (90, 90, 90)),
        ("I;16", "tif", 65_535, (255, 255, 255)),
        ("I", "tif", 257 * 90, (90, 90, 90)),
        ("F", "tif", 0.6, (153, 153, 153)),
        ("RGBA", "png", (200, 0, 0, 0), (255, 255, 255)),
        ("RGBA", "webp", (0, 0, 0, 255), (0, 0, 0)),
        ("LA", "png", (100, 51), (224, 224, 224)),
    ],
)
def test_modes_become_rgb_by_stated_rules(
    tmp_path: Path, mode: str, suffix: str, colour: Any, expected: tuple[int, ...]
) -> None:
    path = tmp_path / f"a.{suffix}"
    # Pillow 12.3 cannot read the uncompressed YCbCr that it writes.
    options = {"compression": "tiff_lzw"} if mode == "YCbCr" else {"lossless": True}
    Image.new(mode, (12, 8), colour).save(path, **options)
    image = read_image(path, 1)
    assert (image.rows.shape, image.rows.dtype) == ((3, 8, 12), np.uint8)
    assert image.rows.reshape(3, -1).T[[0, -1]].tolist() == [list(expected)] * 2


@pytest.mark.parametrize(("mode", "colour"), [("P", 0), ("L", 3), ("RGB", (3, 0, 0)), ("I;16", 3)])
def test_a_transparent_colour_becomes_white(tmp_path: Path, mode: str, colour: Any) -> None:
    Image.new(mode, (4, 4), colour).save(tmp_path / "a.png", transparency=colour)
    assert (read_image(tmp_path / "a.png", 1).rows == 255).all()


@pytest.mark.parametrize(("mode", "value"), [("F", 1.5), ("F", np.nan), ("I", -1), ("I", 70_000)])
def test_values_of_unknown_range_are_refused(tmp_path: Path, mode: str, value: float) -> None:
    Image.new(mode, (4, 4), value).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"its values of mode . go from .* expected 0 to"):
        read_image(tmp_path / "a.tif", 1)


def test_pixels_are_those_of_the_file_upright(tmp_path: Path) -> None:
    drawn = draw(20, 30, 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    drawn.save(tmp_path / "a.png", exif=exif)
    image = read_image(tmp_path / "a.png", 1, Resize(40, 100))
    assert (image.size, image.rows.shape) == ((30, 20), (3, 40, 60))
    plain = read_image(tmp_path / "a.png", 1).rows.transpose(1, 2, 0)
    np.testing.assert_array_equal(plain, np.rot90(np.asarray(drawn), -1))


def test_lists_of_images(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(12):
        (folder / f"notes{number:02}.txt").touch()
    (folder / "._COCO_x_000000000009.png").touch()
    found = list_images(folder, "coco")
    notes = ", ".join(f"notes{number:02}.txt" for number in range(9))
    passed = f"passed over 13 files without an image: ._COCO_x_000000000009.png, {notes} and 3 more"
    assert passed in capsys.readouterr().err
    assert list(found) == [0, 1, 2, 3, 4, 5, 6]
    assert found[6] == folder / "sub" / "COCO_x_000000000006.png"
    assert next(iter(list_images(folder, "stem"))) == "COCO_x_000000000000"
    draw(9, 9, 0).save(folder / "COCO_x_000000000006.jpg")
    with pytest.raises(DataError, match=r"sub.*000000000006\.png: .* as 'COCO.*6.jpg' before"):
        list_images(folder, "stem")
    draw(9, 9, 0).save(folder / "beach.jpg")
    with pytest.raises(DataError, match=r"beach\.jpg: the name 'beach' does not end in an integer"):
        list_images(folder, "coco")
    with pytest.raises(DataError, match="no folder with images"):
        list_images(tmp_path / "nowhere", "stem")


@pytest.mark.parametrize("rule", ["stem", "path"])
def test_what_pillow_reads_is_an_image_whatever_its_suffix(tmp_path: Path, rule: Any) -> None:
    for name in ("a.jfif", "b.jp2", "c.avif", "d.PPM", "e.scan", "f"):
        draw(9, 9, 0).save(tmp_path / name, format={"e.scan": "TIFF", "f": "PNG"}.get(name))
    assert list(list_images(tmp_path, rule)) == ["a", "b", "c", "d", "e.scan", "f"]


@pytest.mark.parametrize(
    ("name", "stem", "path", "coco"),
    [
        ("COCO_val2014_000000000009.jpg", *["COCO_val2014_000000000009"] * 2, 9),
        ("scan0/source.jpg", "source", "scan0/source", None),
        ("a/7.JPG.npz", "7", "a/7", 7),
        ("v1.2", "v1.2", "v1.2", None),
    ],
)
def test_ids(name: str, stem: str, path: str, coco: int | None) -> None:
    assert (image_id(name, "stem"), image_id(name, "path")) == (stem, path)
    if coco is not None:
        assert image_id(name, "coco") == coco
    else:
        with pytest.raises(ValueError, match="--ids stem or --ids path"):
            image_id(name, "coco")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp"])
def test_truncated_images_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (90, 60, 3), np.uint8)
    for share in (0.6, 0.1, 0.0):
        Image.fromarray(pixels).save(path)
        os.truncate(path, int(path.stat().st_size * share))
        with pytest.raises(ValueError, match="not a readable image"):
            read_image(path, 1)


SIDE = 96


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, *_: object, **__: object) -> None:
        raise URLError(f"asked for {url}")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)


def saved(path: Path, name: str, **options: Any) -> tuple[Path, nn.Module]:
    """A model with weights of its own, and the file that they are saved in."""
    torch.manual_seed(7)
    model = get_model(name, weights=None, **options).eval()
    for module in model.modules():  # so that normalisation does something
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    torch.save(model.state_dict(), path)
    return path, model


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("resnet18", "layer4"),
        ("squeezenet1_1", "features"),
        ("mobilenet_v3_small", "features"),
        ("shufflenet_v2_x0_5", "conv5"),
        pytest.param("densenet121", "features", marks=pytest.mark.slow),
    ],
)
def test_cells_are_those_of_the_last_map(tmp_path: Path, name: str, module: str) -> None:
    state, model = saved(tmp_path / "state.pth", name)
    seen: list[Tensor] = []
    model.get_submodule(module).register_forward_hook(lambda *args: seen.append(args[2]))
    draw(150, 100, 1).save(tmp_path / "a.png")
    pixels = torch.tensor(read_image(tmp_path / "a.png", 1, Resize(80, 1000)).rows)[None]
    assert pixels.shape == (1, 3, 80, 120)
    extractor = GridExtractor(name, str(state))
    with torch.inference_mode():
        model(T.normalize(pixels.float() / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
        (found,) = extractor(pixels)
        batch = extractor(torch.cat([pixels.flip(3), pixels]))
    # Densenet's map goes through a ReLU that is no module.
    expected = seen[0].relu() if name == "densenet121" else seen[0]
    assert expected.std() > 0
    height, width = expected.shape[2:]
    assert height != width
    assert (found.grid_shape, found.boxes) == ((height, width), None)
    torch.testing.assert_close(found.features.T.reshape(expected.shape[1:]), expected[0])
    torch.testing.assert_close(batch[1].features, found.features, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_the_map_of_other_families() -> None:
    for name, layer in {
        "vgg11": "features.20",
        "swin_t": "permute",
        "regnet_y_400mf": "trunk_output.block4.block4-5.activation",
        "googlenet": "inception5b.cat",
    }.items():
        assert GridExtractor(name, "random").layer == layer


def test_random_weights_are_the_same_every_time_and_leave_the_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, second = (GridExtractor("resnet18", "random") for _ in range(2))
    assert torch.rand(1) == expected
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    assert first.settings["weights"] == {"random": True, "seed": 0}


def test_models_that_do_not_fit_are_refused(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="vit_b_32: takes only images of one size"):
        GridExtractor("vit_b_32", "random")
    assert "Traceback" not in capfd.readouterr().err
    with pytest.raises(DataError, match=r"resnet19: is not a classification model .* resnet18"):
        GridExtractor("resnet19", "random")
    for name in ("resnet18", "maskrcnn_resnet50_fpn", "nothing"):
        with pytest.raises(DataError, match=f"{name}: is not a Faster R-CNN of torchvision"):
            RegionExtractor(name, "random", BoxSelection())


def selected_by_hand(
    boxes: Tensor, scores: Tensor, labels: Tensor, selection: BoxSelection
) -> list[int]:
    overlaps = box_iou(boxes, boxes)
    kept: list[int] = []
    suppressed: list[int] = []
    for i in scores.argsort(descending=True).tolist():
        rivals = [j for j in kept if labels[i] == labels[j] and overlaps[i, j] > selection.overlap]
        (suppressed if rivals else kept).append(i)
    above = sum(bool(scores[i] > selection.threshold) for i in kept)
    return [*kept, *suppressed][: min(max(above, selection.min_boxes), selection.max_boxes)]


@pytest.mark.parametrize("seed", range(20))
def test_selection(seed: int) -> None:
    random = np.random.default_rng(seed)
    least, more = random.integers(1, 45, 2).tolist()
    selection = BoxSelection(random.random(), random.random(), least, least + more)
    corners = np.sort(random.random((40, 2, 2)) * 30, axis=1).reshape(40, 4)
    corners[:, 2:] += 10
    scores, labels = random.permutation(40) / 40, random.integers(0, 3, 40)
    given = [torch.from_numpy(array) for array in (corners, scores, labels)]
    assert selection(*given).tolist() == selected_by_hand(*given, selection)
    assert selection(torch.empty(0, 4), torch.empty(0), torch.empty(0).long()).tolist() == []


@pytest.fixture
def image() -> Tensor:
    return torch.from_numpy(np.array(draw(150, 100, 3)).transpose(2, 0, 1).copy())


@pytest.fixture
def detector(tmp_path: Path) -> tuple[Path, Any]:
    """A detector of a single class, with the file of its weights."""
    options = {"weights_backbone": None, "num_classes": 2, "min_size": SIDE}
    path, model = saved(tmp_path / "detector.pth", DETECTOR, **options)
    nn.init.normal_(model.roi_heads.box_predictor.bbox_pred.weight, std=0.5)
    torch.save(model.state_dict(), path)
    return path, model


@pytest.mark.parametrize("choice", [BoxSelection(0.506, 0.5, 1, 100), BoxSelection(0.3, 0.3, 1, 8)])
def test_boxes_are_the_detections_of_torchvision(
    detector: tuple[Path, Any], image: Tensor, choice: BoxSelection
) -> None:
    """With one class, a proposal's best class is the only one, as torchvision sees it too."""
    path, model = detector
    heads = model.roi_heads
    heads.score_thresh, heads.nms_thresh, _, heads.detections_per_img = choice
    with torch.inference_mode():
        (found,) = RegionExtractor(DETECTOR, str(path), choice, SIDE)(image[None])
        (detected,) = model([image / 255])
    assert 1 < len(detected["boxes"]) <= choice.max_boxes
    scale = torch.tensor([150, 100, 150, 100])
    torch.testing.assert_close(found.boxes, detected["boxes"] / scale, atol=1e-5, rtol=0)
    assert found.features.shape == (len(detected["boxes"]), 1024)


def test_features_are_those_of_the_parts_run_by_hand(
    detector: tuple[Path, Any], image: Tensor
) -> None:
    extractor = RegionExtractor(DETECTOR, str(detector[0]), BoxSelection(0.5, 0.5, 3, 20), SIDE)
    model = extractor.model
    with torch.inference_mode():
        (found,) = extractor(image[None])
        images, _ = model.transform([image / 255])
        maps = model.backbone(images.tensors)
        ((height, width),) = images.image_sizes
        boxes = found.boxes * torch.tensor([width, height, width, height])
        pooled = model.roi_heads.box_roi_pool(maps, [boxes], images.image_sizes)
        expected = model.roi_heads.box_head(pooled)
        batch = extractor(torch.stack([image.flip(2), image]))
    assert (height, width) == (SIDE, 144)
    assert expected.std() > 0
    for each in (found, batch[1]):
        torch.testing.assert_close(each.features, expected, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(each.boxes, found.boxes, atol=1e-5, rtol=0)


def test_local_state_dictionaries(tmp_path: Path) -> None:
    path, model = saved(tmp_path / "mine.pth", "resnet18", num_classes=7)
    extractor = GridExtractor("resnet18", str(path))
    loaded, state = extractor.trunk.state_dict(), model.state_dict()
    assert len(loaded) == len(state) - 2  # the classifier is not needed, nor its size
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())
    description = extractor.settings["weights"]
    assert (description["file"], len(description["sha256"])) == ("mine.pth", 64)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("it lacks 'layer1.0.conv1.weight'", {"layer1.0.conv1.weight": None}),
        (r"size mismatch for conv1\.weight: .*\[2\]\)", {"conv1.weight": torch.ones(2)}),
        ("it has 'neck.weight' besides", {"neck.weight": torch.ones(2)}),
        ("not a state dictionary written by torch", {"epoch": 3}),
    ],
)
def test_states_that_do_not_fit(tmp_path: Path, message: str, change: dict[str, Any]) -> None:
    path, model = saved(tmp_path / "mine.pth", "resnet18")
    changed = {**model.state_dict(), **change}
    torch.save({key: value for key, value in changed.items() if value is not None}, path)
    with pytest.raises(DataError, match=rf"mine\.pth: .*{message}"):
        GridExtractor("resnet18", str(path))


def test_other_files_are_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, executed = tmp_path / "mine.pth", tmp_path / "executed"
    with pytest.raises(DataError, match="no such file; weights are DEFAULT, random or a file"):
        choose_weights("resnet18", str(path))
    torch.save({"a": Bomb(executed)}, path)
    bomb = path.read_bytes()
    torch.save({}, path)
    for content in (bomb, path.read_bytes(), b"", b"PKjunk", pickle.dumps(Bomb(executed))):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"mine\.pth: not a state dictionary written by"):
            choose_weights("resnet18", str(path))
    assert not executed.exists()
    # Torchvision adapts some models to its own weights, so these are not loaded as a file.
    torch.save({"a": torch.ones(1)}, path)
    monkeypatch.setattr(extractors, "sha256_of", lambda _: "258fb6c6" + 56 * "0")
    where = r"checkpoints/fasterrcnn_resnet50_fpn_coco-258fb6c6\.pth and use --weights DEFAULT"
    with pytest.raises(DataError, match=rf"FasterRCNN_ResNet50_FPN_Weights\.COCO_V1, .*{where}"):
        choose_weights("fasterrcnn_resnet50_fpn", str(path))


def test_default_downloads() -> None:
    message = "weights could not be downloaded .*asked for .*"
    with pytest.raises(DataError, match=message + "resnet18"):
        GridExtractor("resnet18", "DEFAULT")
    with pytest.raises(DataError, match=message + "fasterrcnn"):
        RegionExtractor(DETECTOR, "DEFAULT", BoxSelection())


def run(task: str, folder: Path, output: Path, *more: str) -> int:
    common = ["--weights", "random", "--workers", "0", "--ids", "coco", "--device", "cpu"]
    return int(main([task, str(folder), "--output", str(output), *TASKS[task], *common, *more]))


@pytest.mark.parametrize("more", [[], ["--workers", "2", "--batch-size", "2"]])
def test_grid(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    output = tmp_path / "out.h5"
    assert run("grid", folder, output, "--float32", *more) == 0
    shown = capsys.readouterr()
    assert "7 of 7 images" in shown.out
    assert "RANDOM WEIGHTS" in shown.err
    store = open_store(output)
    assert store.image_ids.tolist() == list(range(7))
    assert store.sizes.tolist() == [list(size) for size in SIZES]
    assert store.grid_shapes.tolist() == [[2, 3], [3, 2], [2, 3], [2, 2], [2, 4], [2, 3], [2, 4]]
    assert store.provenance["extractor"]["weights"] == {"random": True, "seed": 0}
    assert f"grid {folder} --backbone resnet18" in store.provenance["command"]
    extractor = GridExtractor("resnet18", "random")
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        pixels = torch.tensor(read_image(path, number, Resize(64, 128)).rows)
        with torch.inference_mode():
            (expected,) = extractor(pixels[None])
        np.testing.assert_allclose(store.image(number)[0], expected.features, atol=1e-5, rtol=1e-5)


def test_region(tmp_path: Path, folder: Path) -> None:
    output = tmp_path / "out.h5"
    run("region", folder, output, "--min-boxes", "4", "--max-boxes", "6", "--float32")
    store = open_store(output)
    assert np.diff(store.offsets).tolist() == [4] * 7
    assert store.sizes.tolist() == [list(size) for size in SIZES]
    assert store.provenance["extractor"]["region"] == DETECTOR
    extractor = RegionExtractor(DETECTOR, "random", BoxSelection(min_boxes=4, max_boxes=6), 64)
    pixels = torch.tensor(read_image(folder / "COCO_x_000000000001.png", 1).rows)
    with torch.inference_mode():
        (expected,) = extractor(pixels[None])
    np.testing.assert_allclose(store.boxes[4:8], expected.boxes, atol=1e-5)
    np.testing.assert_allclose(store.rows[4:8], expected.features, atol=1e-5, rtol=1e-3)
    with pytest.raises(DataError, match=r"features were made with random weights; give no file$"):
        extractor_of(store.made_by, tmp_path / "x.pth", torch.device("cpu"))
    extract = extractor_of(store.made_by, None, torch.device("cpu"))
    again = extract(open_rgb(folder / "COCO_x_000000000001.png"))
    np.testing.assert_allclose(store.rows[4:8], again.rows, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("task", ["grid", pytest.param("region", marks=pytest.mark.slow)])
def test_shards_make_the_whole_and_bf16_is_near_float32(
    tmp_path: Path, folder: Path, task: str
) -> None:
    run(task, folder, tmp_path / "whole.h5")
    run(task, folder, tmp_path / "bf16.h5", "--precision", "bf16")
    shards = [tmp_path / f"shard{i}.h5" for i in (1, 2, 3)]
    for i, shard in enumerate(shards, 1):
        run(task, folder, shard, "--shard", f"{i}/3")
    whole, opened = open_store(tmp_path / "whole.h5"), [open_store(shard) for shard in shards]
    assert [store.image_ids.tolist() for store in opened] == [[0, 3, 6], [1, 4], [2, 5]]
    assert opened[2].provenance["extractor"] == whole.provenance["extractor"]
    assert "--shard 3/3" in opened[2].provenance["command"]
    one, other = (
        StoreGroup(stores).gather(np.array(order))
        for stores, order in (([whole], range(7)), (opened, [0, 3, 5, 1, 4, 6, 2]))
    )
    assert one[0].lengths.tolist() == other[0].lengths.tolist()
    for ours, theirs in zip(one[1:], other[1:], strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)
    exact, rounded = (s.rows.astype(float) for s in (whole, open_store(tmp_path / "bf16.h5")))
    assert exact.shape == rounded.shape
    assert abs(exact.mean() - rounded.mean()) < 0.05 * exact.mean()


def test_broken_images_are_named(tmp_path: Path, folder: Path) -> None:
    os.truncate(folder / "COCO_x_000000000003.png", 100)
    (folder / "COCO_x_000000000009.jpg").touch()
    output = tmp_path / "out.h5"
    with pytest.raises(DataError, match=r"2 broken and 0 .*\(3: .*3\.png: not a readable"):
        run("grid", folder, output)
    with pytest.raises(DataError, match="was begun with extractor ="):
        run("grid", folder, output, "--resume", "--precision", "bf16")
    run("grid", folder, output, "--resume", "--skip-broken")
    store = open_store(output)
    assert store.image_ids.tolist() == [0, 1, 2, 4, 5, 6]
    assert list(store.provenance["skipped"]) == ["3", "9"]


def test_no_region_and_too_little_memory(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(BoxSelection, "__call__", lambda self, boxes, *_: torch.zeros(0).long())
    with pytest.raises(DataError, match=r"7 broken and 0 .*\(0: the detector proposes no"):
        run("region", folder, tmp_path / "region.h5")
    monkeypatch.setattr(GridExtractor, "forward", full)
    with pytest.raises(
        DataError, match=r"3 images of 96 x 64 pixels: more than .* smaller --batch-size"
    ):
        run("grid", folder, tmp_path / "grid.h5")


def test_user_errors_are_one_line(tmp_path: Path, folder: Path) -> None:
    output = tmp_path / "out.h5"
    output.write_text("precious")
    for task, more, message in (
        ("grid", ["--device", "nonsense"], "--device nonsense: cannot be used here"),
        ("grid", [], "already exists"),
        ("grid", ["--output", str(tmp_path / "no.h5"), "--shard", "8/8"], "no image was added"),
    ):
        with pytest.raises(DataError, match=message):
            run(task, folder, output, *more)
    assert output.read_text() == "precious"
    with pytest.raises(SystemExit):
        run("grid", folder, output, "--shard", "3/2")


def pixels(source: Path, output: Path, *more: str) -> Any:
    options = ["--output", str(output), "--workers", "0", "--size", "6", "8", *more]
    assert main(["pixels", str(source), *options]) == 0
    return open_store(output)


def test_pixels(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = pixels(folder, tmp_path / "out.h5")
    assert (store.kind, store.rows.shape) == ("pixels", (7, 3, 6, 8))
    assert store.sizes.tolist() == [list(size) for size in SIZES]
    first = Image.open(folder / "COCO_x_000000000000.png").resize((8, 6), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(store.rows[0].transpose(1, 2, 0), np.asarray(first))
    shards = [pixels(folder, tmp_path / f"{i}.h5", "--shard", f"{i}/2") for i in (1, 2)]
    assert [len(shard) for shard in shards] == [4, 3]
    with pytest.raises(DataError, match=r"1 broken .* 150 x 70 pixels; admit it with --max-pixels"):
        pixels(folder, tmp_path / "small.h5", "--max-pixels", "9000")
    again = pixels(folder, tmp_path / "small.h5", "--max-pixels", "10500", "--resume")
    assert again.digest == store.digest
    same = draw(9, 9, 0)
    for name in ("scan0", "scan1"):
        (tmp_path / "scans" / name).mkdir(parents=True)
        same.save(tmp_path / "scans" / name / "source.png")
    with pytest.raises(
        DataError, match=r"the id 'source', as 'scan0/source\.png' before; use --ids path"
    ):
        pixels(tmp_path / "scans", tmp_path / "scans.h5")
    store = pixels(tmp_path / "scans", tmp_path / "scans.h5", "--ids", "path")
    assert array_to_ids(store.image_ids) == ["scan0/source", "scan1/source"]
    assert "images with the same rows: 'scan1/source'" in capsys.readouterr().err
    same.save(tmp_path / "scans" / "scan1" / "source.bmp")
    with pytest.raises(DataError, match=r"the id 'scan1/source', as .* before; rename one$"):
        pixels(tmp_path / "scans", tmp_path / "other.h5", "--ids", "path")


PACKED = {
    "image_id": [3, 3, 5, 9],
    "image": ["a.jpg", "a.jpg", "b.jpg", "c.jpg"],
    "question": ["what", "where", "who", "why"],
}


@pytest.mark.parametrize(
    ("drop", "more", "ids"),
    [
        ("", [], [3, 5, 9]),
        ("image_id", [], ["a", "b", "c"]),
        ("image_id path", [], [f"train-00000-of-00001/{row}" for row in range(4)]),
        ("", ["--fields", "image=image", "id=question"], ["what", "where", "who", "why"]),
    ],
)
def test_images_inside_parquet(tmp_path: Path, drop: str, more: list[str], ids: list[Any]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    drawn = {}
    for number, name in enumerate("abc"):
        draw(20, 10, number).save(tmp_path / "a.png")
        drawn[f"{name}.jpg"] = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").unlink()
    shown = {name: None if "path" in drop else name for name in PACKED["image"]}
    images = [{"bytes": drawn[name], "path": shown[name]} for name in PACKED["image"]]
    columns = {k: v for k, v in {**PACKED, "image": images}.items() if k not in drop.split()}
    path = tmp_path / "in" / "train-00000-of-00001.parquet"
    path.parent.mkdir()
    parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    store = pixels(path, tmp_path / "out.h5", *more)
    assert array_to_ids(store.image_ids) == ids
    assert store.digest == pixels(path.parent, tmp_path / "same.h5", *more, "--workers", "1").digest
    assert [tuple(size) for size in store.sizes] == [(20, 10)] * len(ids)
    if drop:
        return
    with pytest.raises(DataError, match=r"fields of images are image, others .* --fields image="):
        pixels(path, tmp_path / "bad.h5", "--fields", "id=name")
    columns["image_id"] = [3, 3, 3, 9]
    parquet.write_table(pyarrow.table(columns), path)
    with pytest.raises(DataError, match=r"entry 2: image id 3 is of 'b.jpg', but earlier of"):
        pixels(path, tmp_path / "bad.h5")
    path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match="not the Parquet expected"):
        pixels(path, tmp_path / "bad.h5")
