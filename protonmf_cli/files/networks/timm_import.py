"""Where timm is imported."""

from typing import Any

import torch


def import_timm() -> Any:
    """timm, also where torchvision's compiled part does not fit torch (a CPU build of one beside the other's).

    timm needs torchvision's transforms only. They import once the schemas of the two operators that
    torchvision annotates at import exist; the operators themselves stay unavailable.
    """
    try:
        import timm
    except RuntimeError as failure:
        if "torchvision::" not in str(failure):
            raise
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import_timm.library = library  # type: ignore[attr-defined]  # its schemas live as long as it does
        import timm
    return timm
