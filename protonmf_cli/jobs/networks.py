"""From words about a network to a request that the loader understands."""

from dataclasses import dataclass

from protonmf_cli.errors import UsageError
from protonmf_cli.files.networks.loading import TIMM, library_of
from protonmf_cli.files.networks.request import BackboneRequest, GivenModule
from protonmf_cli.options import NetworkWords, RowsOption


@dataclass(frozen=True, kw_only=True)
class ModuleWords(NetworkWords):
    """A network that Python holds; its name is for messages."""

    given: GivenModule


def request_of(
    words: NetworkWords, *, rows: RowsOption = "auto", offline: bool = False, seed: int = 0
) -> BackboneRequest:
    """What to load, and how its head is to be read."""
    extra = {"num_classes": words.num_classes} if words.num_classes else {}
    return BackboneRequest(
        name=words.name, weights=words.weights, model_args={**words.model_args, **extra}, rows=rows,
        img_size=words.img_size, labels=words.labels, features=words.features,
        multi_label=words.multi_label, exif_transpose=words.exif_transpose, offline=offline, pretrained=words.pretrained,
        seed=seed, given=words.given if isinstance(words, ModuleWords) else None,
    )  # fmt: skip


def check_weights(words: NetworkWords) -> None:
    """Refuse a network that is to have weights and none.

    Raises:
        UsageError: naming both options.
    """
    if words.weights is not None and not words.pretrained:
        raise UsageError("--weights and --no-pretrained exclude each other.")


def check_kept(network: NetworkWords, embed: bool) -> None:
    """Refuse to leave weights out of a model file that could not be found again.

    Raises:
        UsageError: with what to do instead.
    """
    if embed:
        return
    if (library := library_of(network.name)) != TIMM:
        raise UsageError(
            f"--no-embed-backbone keeps the name of the network alone, which is enough for timm's; {network.name} is of "
            f"{library}. Leave it out."
        )
    if network.weights is not None:
        raise UsageError(
            "--no-embed-backbone keeps the name of the network alone, under which the file of --weights is not found "
            "again. Leave one of the two out, or give the network as a local-dir: folder."
        )
