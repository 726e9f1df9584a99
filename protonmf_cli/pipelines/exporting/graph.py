"""A prototype model as one module: pixels in; logits, amounts and maps out."""

from dataclasses import dataclass, fields
from typing import assert_never

import torch
from torch import Tensor, nn

from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.evidence import NearestPatch, SoftMatch
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.readouts.readout import relative_difference
from protonmf_cli.models.response import compared, evidence_of, parts_of_evidence, similarity_maps
from protonmf_cli.pipelines.explaining.explanation import answers_of


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What a graph gives for B images."""

    logits: Tensor
    """(B, C)"""
    amounts: Tensor
    """(B, K) of every prototype what `explain` of its own class shows: its amount, or projection, similarity, match."""
    maps: Tensor | None
    """(B, K, h, w) how it is made up of the places; None where rows have no place."""

    def given(self) -> dict[str, Tensor]:
        """By name, without those that there are not."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def differences(self, expected: "Outputs") -> dict[str, float]:
        """Largest difference of each output, in units of the spread of what is expected."""
        others = expected.given()
        return {name: relative_difference(found, others[name]) for name, found in self.given().items()}


class PrototypeGraph(nn.Module):
    """Normalised pixels (B, channels, H, W) -> the outputs that there are, in the order of `Outputs`."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        # a backbone is no module, so that tracing does not keep book of the network's modules: readouts leave some of
        # them before their end, which it does not expect
        self.backbone = backbone

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, C) logits, (B, K) amounts and, where rows have a place, (B, K, h, w) maps."""
        return tuple(self.outputs(image).given().values())

    def outputs(self, image: Tensor) -> Outputs:
        """The same by name."""
        raise NotImplementedError

    def on_grid(self, maps: Tensor) -> Tensor | None:
        """(B, N, K) values of places as (B, K, h, w)."""
        grid = self.backbone.readout.grid
        return None if grid is None else maps.mT.unflatten(2, grid)


class SummedGraph(PrototypeGraph):
    """Of a model whose evidence is a sum over rows."""

    readers: Tensor
    """(K, D)"""
    vectors: Tensor
    """(n, D) rows of the head of the classes whose logits are not the network's own."""
    bias: Tensor
    """(n,)"""
    order: Tensor
    """(C,) places of the classes among the network's logits and, behind them, those of the n classes."""

    def __init__(self, backbone: Backbone, model: PrototypeModel) -> None:
        super().__init__(backbone)
        self.places, self.placed = backbone.readout.places, model.placed
        self.register_buffer("readers", own_readers(model).float())
        vectors, bias, order = _edited_head(backbone, model)
        self.register_buffer("vectors", vectors.float())
        self.register_buffer("bias", bias.float())
        self.register_buffer("order", order)

    def outputs(self, image: Tensor) -> Outputs:
        reading = self.backbone.readout.read(self.backbone.network, image)
        rows, logits = reading.rows, reading.logits
        if len(self.vectors):
            edited = rows.sum(dim=1) @ self.vectors.mT + self.bias
            logits = torch.cat([logits, edited], dim=1)[:, self.order]
        return Outputs(
            logits=logits,
            amounts=rows[:, : self.placed].sum(dim=1) @ self.readers.mT,
            maps=self.on_grid(rows[:, : self.places] @ self.readers.mT),
        )


class ComparedGraph(PrototypeGraph):
    """Of a model whose evidence does not add up, computed in float64 behind the network, as explanations are.

    Near a prototype float32 keeps no digit of the distance.
    """

    def __init__(self, backbone: Backbone, model: PrototypeModel) -> None:
        super().__init__(backbone)
        self.model = model.exact
        _ = self.model.dense_weights  # made once, not by the graph

    def outputs(self, image: Tensor) -> Outputs:
        rows = self.backbone.readout.read(self.backbone.network, image).rows.double()
        maps = similarity_maps(self.model, rows, list(range(len(self.model.prototypes))))
        match compared(self.model):
            case NearestPatch():
                evidence = maps.amax(dim=1)
            case SoftMatch():
                evidence, maps = evidence_of(self.model, rows), maps.clamp_min(0)
            case other:
                assert_never(other)
        logits = parts_of_evidence(self.model, evidence).logits
        return Outputs(logits=logits.float(), amounts=evidence.float(), maps=self.on_grid(maps.float()))


def graph_of(backbone: Backbone, model: PrototypeModel) -> PrototypeGraph:
    """The graph of a model of one network, on the CPU, in float32."""
    return (SummedGraph if model.adds_up else ComparedGraph)(backbone, model)


def expected_outputs(backbone: Backbone, model: PrototypeModel, crops: Tensor) -> Outputs:
    """What explanations show of uint8 crops (B, channels, H, W), in float64."""
    answers = answers_of(backbone, model, crops)
    logits, grid = torch.stack([answer.logits for answer in answers]), backbone.readout.grid
    responses = [answer.response for answer in answers if answer.response is not None]
    if responses:
        amounts = torch.cat([response.evidence for response in responses])
        maps = torch.cat([response.maps for response in responses])
        maps = maps.clamp_min(0) if isinstance(model.evidence, SoftMatch) else maps
    else:
        readers = own_readers(model)
        rows = torch.stack([answer.rows for answer in answers])
        amounts = rows[:, : model.placed].sum(dim=1) @ readers.mT
        maps = rows[:, : backbone.readout.places] @ readers.mT
    return Outputs(logits=logits, amounts=amounts, maps=None if grid is None else maps.mT.unflatten(2, grid))


def own_readers(model: PrototypeModel) -> Tensor:
    """(K, D) float64 what each prototype is read with beside those of its own class, in the form of the file.

    A class as a whole, which no explanation of its own has, is read by itself.
    """
    found = torch.where(model.wholes[:, None], model.prototypes.cpu().double(), 0.0)
    found /= found.square().sum(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    for c in model.active_classes.tolist():
        head, own = model.class_head(c), set(model.own(c))
        readers = head.augmented if model.is_augmented else head.readers
        for prototype, reader in zip(head.prototypes, readers, strict=True):
            if prototype in own:
                found[prototype] = reader
    return found


def _edited_head(backbone: Backbone, model: PrototypeModel) -> tuple[Tensor, Tensor, Tensor]:
    """`vectors`, `bias` and `order` of a `SummedGraph`."""
    count, edited = len(model.bias), model.edited_classes
    order = torch.arange(count)
    if edited is None or not backbone.readout.has_head:
        return model.head_vectors(), model.bias, order + count
    if not edited:
        return model.residual[:0], model.bias[:0], order
    heads = [model.class_head(c) for c in edited]
    order[edited] = count + torch.arange(len(edited))
    return torch.stack([head.vector for head in heads]), torch.tensor([head.bias for head in heads]), order
