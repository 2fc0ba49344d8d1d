"""Grid features: the last map of a classification backbone, its cells as rows.

B pictures, H, W their height and width, (h, w) rows and columns of the map, D channels.
"""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import list_models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from mcan.errors import DataError
from mcan.vision.extractor import Described, Extractor
from mcan.vision.weights import build_model, check_name, choose_weights, load_state

# Not square, so that a model that needs squares shows it.
_PROBE = (1, 3, 160, 224)
# Of all torchvision weights for classification.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class GridExtractor(Extractor):
    """The cells of a picture row by row, with the shape of their grid.

    `backbone` is the name of a classification model of torchvision, `choice` its weights: DEFAULT,
    random or a file. Raises `DataError` where the model does not exist, takes only one size of
    pictures, or does not fit the weights.
    """

    gives_boxes = False
    mean: Tensor
    std: Tensor

    def __init__(self, backbone: str, choice: str) -> None:
        super().__init__()
        check_name(backbone, list_models(module=torchvision.models), "classification model")
        weights = choose_weights(backbone, choice)
        model: Any = build_model(backbone, weights)
        if hasattr(model, "transform_input") and "published" in weights.description:
            model.transform_input = True  # GoogLeNet's and Inception's were trained so.
        self.layer, self.feature_dim = _last_map(backbone, model)
        self.trunk = create_feature_extractor(
            model, {self.layer: "map"}, suppress_diff_warning=True
        ).eval()
        load_state(self.trunk, weights, model)
        self.settings = {"grid": backbone, "layer": self.layer, "weights": weights.description}
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(3, 1, 1), persistent=False)

    def forward(self, pictures: Tensor) -> list[Described]:
        maps = self.trunk((pictures / 255 - self.mean) / self.std)["map"]
        shape = int(maps.shape[2]), int(maps.shape[3])
        return [Described(rows, grid_shape=shape) for rows in maps.flatten(2).transpose(1, 2)]


def _last_map(name: str, model: nn.Module) -> tuple[str, int]:
    """The last (B, D, h, w) before pooling and classifier: its name in the graph, and D."""
    try:
        # The traced model prints where it fails.
        with redirect_stderr(io.StringIO()), torch.inference_mode():
            names = get_graph_node_names(model, suppress_diff_warning=True)[1]
            probe = create_feature_extractor(model, names, suppress_diff_warning=True).eval()
            outputs = probe(torch.zeros(_PROBE))
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise DataError(
            f"{name}: takes only pictures of one size, so it gives no grid in the aspect ratio of "
            "the picture; choose a convolutional backbone"
        ) from error
    maps = {
        node: value.shape[1]
        for node, value in outputs.items()
        if isinstance(value, Tensor)
        and value.ndim == 4
        and value.shape[2] * value.shape[3] > 1
        and not node.startswith("classifier")
        and not _pools(model, node)
    }
    node = list(maps)[-1]
    return node, maps[node]


def _pools(model: nn.Module, node: str) -> bool:
    return any(
        name == node and isinstance(module, nn.AdaptiveAvgPool2d)
        for name, module in model.named_modules()
    )
