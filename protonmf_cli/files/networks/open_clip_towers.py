"""Both towers of a CLIP: pictures and sentences as vectors that can be compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from protonmf_cli.files.atomic import digest_of_tensors
from protonmf_cli.files.networks.failures import loading
from protonmf_cli.files.networks.open_clip_networks import FOLDER, PREFIX, both_towers
from protonmf_cli.files.networks.preprocessing import crop_of
from protonmf_cli.files.networks.request import BackboneRequest
from protonmf_cli.models.backbone import Preprocessing

AT_ONCE = 64
"""Pictures, or sentences, in one pass of a tower."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipTowers:
    """An image and a text tower of open_clip."""

    name: str
    """As the user gave it, completed."""
    model: Any
    tokenizer: Any
    preprocessing: Preprocessing
    device: torch.device
    notes: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> str:
        """sha256 of the weights of both towers."""
        return digest_of_tensors(self.model.state_dict())

    @property
    def scale(self) -> float:
        """By which cosines are multiplied before a softmax."""
        return float(self.model.logit_scale.detach().exp())

    def see(self, patches: Sequence[Tensor]) -> Tensor:
        """(n, D) unit vectors of uint8 patches (channels, height, width), each of its own size, on the CPU."""
        crop, picture = crop_of(self.preprocessing), self._rgb
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.preprocessing.mean, self.preprocessing.std))
        found = []
        for start in range(0, len(patches), AT_ONCE):
            pixels = torch.stack([crop(picture(patch)) for patch in patches[start : start + AT_ONCE]]).float() / 255
            with torch.inference_mode():
                found.append(self.model.encode_image(((pixels - mean) / std).to(self.device)).float().cpu())
        return normalize(torch.cat(found), dim=1)

    def read(self, sentences: Sequence[str]) -> Tensor:
        """(n, D) unit vectors of sentences, on the CPU."""
        found = []
        for start in range(0, len(sentences), AT_ONCE):
            tokens = self.tokenizer(list(sentences[start : start + AT_ONCE])).to(self.device)
            with torch.inference_mode():
                found.append(self.model.encode_text(tokens).float().cpu())
        return normalize(torch.cat(found), dim=1)

    @staticmethod
    def _rgb(patch: Tensor) -> Image.Image:
        return Image.fromarray(patch.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def load_towers(name: str, *, weights: Path | None, offline: bool, device: torch.device) -> ClipTowers:
    """Towers by name, or of a folder.

    Args:
        name: open_clip:ARCHITECTURE:TAG, or a folder that holds open_clip_config.json and weights.
        weights: checkpoint of open_clip:ARCHITECTURE instead of what TAG names.
        offline: never download.
        device: where they compute.

    Raises:
        UsageError: open_clip is not installed, or knows nothing of that name.
        InputError: there are no weights, or they cannot be read or do not fit.
    """
    request = BackboneRequest(name=name, weights=weights, offline=offline)
    model, tokenizer, seen, notes = both_towers(request)
    with loading(name, weights):
        preprocessing = Preprocessing(**seen)
        model = model.to(device)
    shown = name if name.startswith(PREFIX) else f"{PREFIX}{FOLDER}{name.removeprefix(FOLDER)}"
    return ClipTowers(
        name=shown, model=model, tokenizer=tokenizer, preprocessing=preprocessing, device=device, notes=tuple(notes)
    )
