"""What `protonmf inspect` says of a network that is not converted yet: how its head would be read."""

from typing import TYPE_CHECKING, Any

from protonmf_cli.cli.console import Shown

if TYPE_CHECKING:
    from protonmf_cli.files.networks.loading import BackboneRequest
    from protonmf_cli.models.backbone import Backbone
    from protonmf_cli.pipelines.conversion.network_figures import NetworkReading


def inspect_network(request: "BackboneRequest", as_json: bool, shown: Shown) -> None:
    """Load a network, find how its head is read, and look at its rows on two photographs."""
    from protonmf_cli.files.images.sample_images import sample_crops
    from protonmf_cli.files.networks.backbones import load_backbone
    from protonmf_cli.files.networks.preprocessing import crop_of
    from protonmf_cli.pipelines.conversion.network_figures import read_network

    with shown.progress() as bars:
        bars.stage("loading the model and proving how its head is read")
        backbone, notes = load_backbone(request)
        bars.stage("reading two photographs")
        seen = backbone.preprocessing
        reading = read_network(backbone, sample_crops(crop_of(seen), seen.input_size[0]))
    for note in notes:
        shown.note(note)
    if as_json:
        shown.json(network_json(backbone, reading))
    else:
        shown.lines(network_lines(backbone, reading, pretrained=request.pretrained))


def network_json(backbone: "Backbone", reading: "NetworkReading") -> dict[str, Any]:
    """`protonmf.network/1`: how a head is read, and figures of its rows on two photographs."""
    from protonmf_cli.pipelines.model_cards import readout_facts

    source = backbone.source
    return {
        "schema": "protonmf.network/1",
        "model": source.name,
        "architecture": source.architecture,
        "weights_digest": source.digest,
        "weights": _weights(backbone),
        "input_size": list(backbone.preprocessing.input_size),
        "classes": len(backbone.classes),
        "readout": readout_facts(backbone),
        "relative_difference_float64": backbone.formula_difference,
        "relative_difference_float32": reading.relative_difference,
        "placed_share": reading.placed_share,
        "quadrants_followed": reading.quadrants,
        "clipped_share": reading.clipped_share,
    }


def network_lines(backbone: "Backbone", reading: "NetworkReading", *, pretrained: bool) -> dict[str, str]:
    """The same in words, by topic."""
    from protonmf_cli.models.wording import rounded

    readout, source = backbone.readout, backbone.source
    size = " x ".join(map(str, backbone.preprocessing.input_size[1:]))
    grid = f"{readout.grid[0]} x {readout.grid[1]} places" if readout.grid else "no places (not spatial)"
    count, classes = readout.places + len(readout.unplaced), len(backbone.classes)
    placed = "nothing: contributions are exact, but no position can be shown"
    if readout.spatial:
        placed = f"{readout.places} of {count} rows"
        if readout.unplaced:
            placed += f"; without a place: {', '.join(readout.unplaced)}"
        if reading.placed_share is not None:
            placed += (
                f"; places carry {rounded(reading.placed_share)} of the predicted class's logit against the mean class"
            )
    following = (
        {}
        if reading.quadrants is None
        else {"places": f"{reading.quadrants} of 4 quadrants of a photograph move the rows that lie there"}
    )
    return {
        "backbone": f"{source.name} ({source.architecture}), {_weights(backbone) / 1e6:.1f} million weights"
        + (f" {source.digest[:12]}" if pretrained else ", drawn at random"),
        "reads": f"images of {size}, {classes} class{'es' * (classes > 1)}",
        "readout": f"{readout.kind}, {grid}, {count} row{'s' * (count > 1)} of width {readout.width}",
        "placed": placed,
        **following,
        "exactness": f"{backbone.formula_difference:.0e} of the spread of the logits in float64, "
        f"{reading.relative_difference:.0e} in float32",
        "signed": f"{reading.clipped_share:.0%} of the squared rows lie below zero; a conversion splits them by sign",
        "measured on": "two photographs that come with scikit-learn"
        + ("" if pretrained else "; drawn weights say little of what trained ones place and clip"),
    }


def _weights(backbone: "Backbone") -> int:
    return sum(tensor.numel() for tensor in backbone.network.parameters())
