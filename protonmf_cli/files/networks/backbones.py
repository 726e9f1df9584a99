"""A timm network and how its head is read: a Backbone, from a name or from a model file."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from torch import Tensor, nn

from protonmf_cli.errors import ModelFileError, UsageError, first_line
from protonmf_cli.files.networks.building import built, check_shapes, check_source
from protonmf_cli.files.networks.given_modules import rebuilt
from protonmf_cli.files.networks.loading import (
    LIBRARIES,
    OWN,
    TIMM,
    library_of,
    load_network,
    rebuilt_network,
    untrusted,
)
from protonmf_cli.files.networks.request import BackboneRequest
from protonmf_cli.files.networks.timm_networks import encoder
from protonmf_cli.models.aligned import aligned
from protonmf_cli.models.backbone import (
    ADDON,
    BACKBONE,
    MISFITS,
    Backbone,
    ClassName,
    Preprocessing,
    Source,
    probe_readout,
    unreadable,
)
from protonmf_cli.models.card import Card, check_backbone, check_reading
from protonmf_cli.models.protopnet.combination import COMBINED, combined_backbone, weights_of_member
from protonmf_cli.models.protopnet.latent_patches import LATENT_PATCHES, add_on_layers, drop_unused, latent_readout
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.readouts.pooled_features import POOLED_FEATURES, PooledFeatures, pooled_features
from protonmf_cli.models.readouts.readout import Network
from protonmf_cli.models.readouts.stored import restored_readout


def load_backbone(request: BackboneRequest) -> tuple[Backbone, list[str]]:
    """Load a classifier on the CPU in float32 and find how its head is read.

    Returns:
        The backbone, and notes for the user (such as a completed name).

    Raises:
        UsageError: unknown name.
        InputError: no weights, or weights that do not fit or hold NaN.
        NotExactError: no classifier, or one that cannot be written as a sum over rows.
    """
    network, preprocessing, classes, source, notes = load_network(request)
    return _backbone(network, preprocessing, classes, source, request.rows), notes


def load_features(request: BackboneRequest) -> tuple[Network, Preprocessing, Source, list[str]]:
    """Load a network on the CPU for its last feature map alone; pool and classifier are dropped.

    Returns:
        The network in evaluation mode, its preprocessing, where it came from, and notes for the user.

    Raises:
        UsageError: unknown name.
        InputError: no weights, weights that do not fit or hold NaN, or features without a grid.
    """
    if (library := library_of(request.name)) != TIMM:
        raise UsageError(
            f"ProtoPNet and few-shot models are trained on networks of timm; {request.name} is one of {library}. "
            "`protonmf convert` takes it."
        )
    if request.multi_label:
        raise UsageError("ProtoPNet and few-shot models are of classes that exclude each other: leave out multi_label.")
    network, preprocessing, _, source, notes = load_network(request, for_features=True)
    try:
        drop_unused(network, preprocessing.input_size)
    except NotImplementedError as failure:
        raise encoder(source.name) from failure
    except MISFITS as failure:
        raise unreadable(source.name, preprocessing.input_size, failure) from failure
    return network, preprocessing, source, notes


def restore_backbone(
    model: PrototypeModel,
    weights: Mapping[str, Tensor] | None,
    offline: bool,
    *,
    trusted: str | None = None,
    given: nn.Module | None = None,
) -> Backbone:
    """The backbone of a model file: from the weights inside it, else from where it was loaded first.

    Args:
        model: of the file.
        weights: of the file; None if it has none.
        offline: never download weights.
        trusted: function of the user's own that may run to build the network.
        given: a module of the same kind, of which a copy takes the weights; of conversions.

    Raises:
        InputError: the weights are not to be had, or are not the ones the model was made from.
    """
    card = model.card
    rows, kind = card.readout.rows, card.readout.kind  # of which there may be a better one now
    if kind == COMBINED:
        parts = [_restore_latent(member, weights_of_member(weights or {}, n)) for n, member in enumerate(card.members)]
        return combined_backbone(parts, card)
    if kind == LATENT_PATCHES:
        return _restore_latent(card, weights or {})
    if kind == POOLED_FEATURES:
        return _restore_features(model, weights, offline)
    if weights is None:
        _check_own(card, trusted)
        loaded, _ = load_backbone(_request_of(card, offline))
        backbone = _backbone(loaded.network, card.preprocessing, card.classes, loaded.source, rows, kind)
    else:
        network = _network_of(card, _part(weights, BACKBONE), trusted, given)
        backbone = _proved(card, network, weights) or _backbone(
            network, card.preprocessing, card.classes, card.source, rows, kind
        )
    check_backbone(model.card, backbone)
    return backbone


def _check_own(card: Card, trusted: str | None) -> None:
    """Refuse to run a function because a file without weights names it.

    Raises:
        InputError: the user did not name it, too.
    """
    name = card.source.name
    if library_of(name) == OWN and (trusted is None or name != LIBRARIES[OWN].PREFIX + trusted):
        raise untrusted(name.removeprefix(LIBRARIES[OWN].PREFIX))


def _network_of(card: Card, weights: Mapping[str, Tensor], trusted: str | None, given: nn.Module | None) -> Network:
    """The network of a card with its weights, built without drawing any that would be replaced at once."""
    if given is not None:
        network = rebuilt(card.source, len(card.classes), given)
        _load_into(network, weights, card)
        return network
    build = _builder(card, trusted)
    if card.source.library == OWN:
        network = build()
        _load_into(network, weights, card)
        return network
    try:
        network = built(build, weights, library=card.source.library, device="meta")
    except (NotImplementedError, RuntimeError):  # what cannot be built without memory
        network = built(build, weights, library=card.source.library)
    _load_into(network, weights, card)
    if any(buffer.is_meta for buffer in network.buffers()):  # which are made when a network is built, not stored
        network = built(build, weights, library=card.source.library)
        _load_into(network, weights, card)
    return network


def _builder(card: Card, trusted: str | None = None) -> Callable[[], Network]:
    """What builds the network of a card.

    Raises:
        ModelFileError: it is none that a library builds by itself.
    """
    check_source(card.source)
    return partial(rebuilt_network, card.source, len(card.classes), trusted=trusted)


def _proved(card: Card, network: Network, weights: Mapping[str, Tensor]) -> Backbone | None:
    """The backbone of a file whose readout was proved when it was written; None where it must be proved now.

    Raises:
        ModelFileError: what the file holds is no readout.
    """
    try:
        found = restored_readout(weights, network)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as failure:
        raise ModelFileError(f"it does not say how its network is read ({first_line(failure)})") from failure
    if found is None:
        return None
    readout, difference = found
    return Backbone(
        network=network,
        readout=readout,
        rows_option=card.readout.rows,
        preprocessing=card.preprocessing,
        classes=card.classes,
        source=card.source,
        formula_difference=difference,
    )


def _request_of(card: Card, offline: bool) -> BackboneRequest:
    """What to ask for where the weights are not inside the model file."""
    return BackboneRequest(
        name=card.source.name,
        model_args={k: v for k, v in card.source.model_args.items() if k != "num_classes"},
        rows=card.readout.rows,
        multi_label=card.source.multi_label,
        exif_transpose=card.preprocessing.exif_transpose,
        offline=offline,
    )


def _restore_features(model: PrototypeModel, weights: Mapping[str, Tensor] | None, offline: bool) -> Backbone:
    """The network of a few-shot model."""
    card = model.card
    if weights is None:
        _check_own(card, None)
        network, _, source, _ = load_features(_request_of(card, offline))
    else:
        network, source = _features_of(card, weights), card.source
    backbone = features_backbone(network, card.preprocessing, card.classes, source, card.readout.layers)
    if isinstance(backbone.readout, PooledFeatures) and backbone.readout.blocks != card.readout.blocks:
        raise ModelFileError(f"its layers are {backbone.readout.blocks} wide, and its card says {card.readout.blocks}")
    check_backbone(model.card, backbone)
    return backbone


def features_backbone(
    network: Network,
    preprocessing: Preprocessing,
    classes: tuple[ClassName, ...],
    source: Source,
    layers: Sequence[int],
) -> Backbone:
    """A network of `load_features` as the Backbone of a few-shot model."""
    return Backbone(
        network=network,
        readout=pooled_features(network, layers, preprocessing.input_size),
        rows_option="auto",
        preprocessing=preprocessing,
        classes=classes,
        source=source,
    )


def _features_of(card: Card, weights: Mapping[str, Tensor]) -> Network:
    """The network of a file without pool and classifier, in evaluation mode."""
    build, own = _builder(card), _part(weights, BACKBONE)
    with suppress(NotImplementedError, RuntimeError):  # what cannot be built without memory
        check_shapes(built(build, own, device="meta"), own)
    network = built(build, own)
    drop_unused(network, card.preprocessing.input_size)
    _load_into(network, own, card)
    return network


def _restore_latent(card: Card, weights: Mapping[str, Tensor]) -> Backbone:
    """Network and add-on layers of a ProtoPNet; both are always inside its file."""
    network = _features_of(card, weights)
    own, readout = _part(weights, ADDON), card.readout
    build = partial(
        add_on_layers, readout.addon, readout.features, readout.channels, bounded=card.similarity != "cosine"
    )
    check_shapes(built(build, own, device="meta"), own)
    layers = build()
    _load_into(layers, own, card)
    backbone = latent_backbone(network, layers, card)
    check_reading(card, backbone)
    return backbone


def latent_backbone(network: Network, layers: nn.Module, card: Card) -> Backbone:
    """Network and add-on layers as the Backbone of a card."""
    readout = latent_readout(network, layers.eval(), card.readout.patch, card.preprocessing.input_size)
    return Backbone(
        network=network,
        readout=readout,
        rows_option=card.readout.rows,
        preprocessing=card.preprocessing,
        classes=card.classes,
        source=card.source,
    )


def _part(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def _load_into(module: Network, weights: Mapping[str, Tensor], card: Card) -> None:
    try:
        own = module.state_dict()
        cast = {
            name: aligned(tensor.to(own[name].dtype) if name in own else tensor) for name, tensor in weights.items()
        }
        # what was built without memory is replaced, other weights are written over
        module.load_state_dict(cast, strict=True, assign=any(tensor.is_meta for tensor in own.values()))
    except RuntimeError as failure:
        raise ModelFileError(
            f"the network inside does not fit {card.source.architecture[:80]}: {first_line(failure)}"
        ) from failure


def _backbone(
    network: Network,
    preprocessing: Preprocessing,
    classes: tuple[ClassName, ...],
    source: Source,
    rows: str,
    kind: str | None = None,
) -> Backbone:
    readout, difference = probe_readout(network, preprocessing.input_size, rows, source.name, kind=kind)
    return Backbone(
        network=network,
        readout=readout,
        rows_option=rows,
        preprocessing=preprocessing,
        classes=classes,
        source=source,
        formula_difference=difference,
    )
