"""Region features: boxes of a Faster R-CNN with what its box head makes of them.

B pictures, H, W their height and width, P proposals of a picture, C classes without background,
n chosen boxes, D width of the box head.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import list_models
from torchvision.ops import batched_nms, clip_boxes_to_image, remove_small_boxes

from mcan.vision.extractor import Described, Extractor
from mcan.vision.weights import build_model, check_name, choose_weights, load_state

_CLASSES = "roi_heads.box_predictor.cls_score.weight"
_SMALLEST = 1e-2


@dataclass(frozen=True)
class Choice:
    """Which boxes are kept.

    A proposal stands for its best class. Boxes of one class that overlap by more than `overlap`
    (intersection over union) give way to the best of them. Those that score above `threshold`
    are kept, but at least `least` (the next best, suppressed ones last) and at most `most`.
    """

    threshold: float = 0.2
    overlap: float = 0.5
    least: int = 10
    most: int = 100

    def __call__(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        """Rows to keep, best first; `boxes` (P, 4), `scores` (P,) and `labels` (P,)."""
        kept = batched_nms(boxes, scores, labels, self.overlap)
        suppressed = torch.ones_like(scores, dtype=torch.bool).index_fill_(0, kept, False)
        others = suppressed.nonzero().flatten()
        others = others[scores[others].argsort(descending=True, stable=True)]
        above = int((scores[kept] > self.threshold).sum())
        return torch.cat([kept, others])[: min(max(above, self.least), self.most)]


class RegionExtractor(Extractor):
    """The boxes of a picture that `choice` keeps, with their features.

    `detector` is the name of a Faster R-CNN of torchvision, `weights` DEFAULT, random or a file.
    The features are pooled from the chosen boxes themselves, not from the proposals that they come
    from, so a box and its features belong together. n is below `choice.least` only if the detector
    proposes fewer, and may then be 0. Raises `DataError` where the detector does not exist or does
    not fit the weights.
    """

    gives_boxes = True
    model: Any

    def __init__(
        self,
        detector: str,
        weights: str,
        choice: Choice,
        short_side: int | None = None,
        long_side: int | None = None,
    ) -> None:
        """Pictures are resized to `short_side`, at most `long_side` (None: as the model has it)."""
        super().__init__()
        self.choice = choice
        sides = {"min_size": short_side, "max_size": long_side}
        options: dict[str, Any] = {k: v for k, v in sides.items() if v is not None}
        known = list_models(module=torchvision.models.detection, include="fasterrcnn*")
        check_name(detector, known, "Faster R-CNN")
        chosen = choose_weights(detector, weights)
        if chosen.state is not None and _CLASSES in chosen.state:
            options["num_classes"] = len(chosen.state[_CLASSES])
        self.model = build_model(detector, chosen, weights_backbone=None, **options)
        load_state(self.model, chosen, self.model)
        if chosen.description.get("published") == "FasterRCNN_ResNet50_FPN_Weights.COCO_V1":
            _normalise_as_trained(self.model)
        self.feature_dim = self.model.roi_heads.box_predictor.cls_score.in_features
        self.settings = {
            "region": detector,
            **sides,
            **asdict(choice),
            "weights": chosen.description,
        }

    def forward(self, pictures: Tensor) -> list[Described]:
        roi = self.model.roi_heads
        batch, _ = self.model.transform(list(pictures / 255))
        maps = self.model.backbone(batch.tensors)
        if isinstance(maps, Tensor):
            maps = OrderedDict([("0", maps)])
        proposals, _ = self.model.rpn(batch, maps)
        pooled = roi.box_head(roi.box_roi_pool(maps, proposals, batch.image_sizes))
        logits, deltas = roi.box_predictor(pooled)
        counts = [len(boxes) for boxes in proposals]
        boxes = [
            self._choose(candidates, scores, (int(height), int(width)))
            for candidates, scores, (height, width) in zip(
                roi.box_coder.decode(deltas.float(), proposals).split(counts),
                logits.float().softmax(1).split(counts),
                batch.image_sizes,
                strict=True,
            )
        ]
        features = roi.box_head(roi.box_roi_pool(maps, boxes, batch.image_sizes))
        scales = [boxes[0].new_tensor([w, h, w, h]) for h, w in batch.image_sizes]
        return [
            Described(rows, boxes=chosen / scale)
            for chosen, scale, rows in zip(
                boxes, scales, features.split([len(chosen) for chosen in boxes]), strict=True
            )
        ]

    def _choose(self, boxes: Tensor, scores: Tensor, size: tuple[int, int]) -> Tensor:
        """(n, 4) out of `boxes` (P, 1 + C, 4) with `scores` (P, 1 + C); class 0 is background."""
        best, label = scores[:, 1:].max(1)
        own = boxes[torch.arange(len(boxes), device=boxes.device), label + 1]
        own = clip_boxes_to_image(own, size)
        large = remove_small_boxes(own, _SMALLEST)
        own, best, label = own[large], best[large], label[large]
        chosen: Tensor = own[self.choice(own, best, label)]
        return chosen


def _normalise_as_trained(model: nn.Module) -> None:
    """These weights are from before batch normalisation had an epsilon when frozen."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
