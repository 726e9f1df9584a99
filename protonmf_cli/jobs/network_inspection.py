"""How the head of a network that is not converted yet would be read."""

from dataclasses import dataclass

from protonmf_cli.files.images.sample_images import sample_crops
from protonmf_cli.files.networks.backbones import load_backbone
from protonmf_cli.files.networks.preprocessing import crop_of
from protonmf_cli.jobs.machine import threads_of
from protonmf_cli.jobs.networks import check_weights, request_of
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.card import ReadoutFacts
from protonmf_cli.options import Machine, NetworkWords, RowsOption
from protonmf_cli.pipelines.conversion.network_figures import NetworkReading, read_network
from protonmf_cli.pipelines.model_cards import readout_facts
from protonmf_cli.pipelines.progress import LOGGED, Progress


@dataclass(frozen=True, kw_only=True, eq=False)
class NetworkInspection:
    """A network, the reading of its head, and figures of its rows on two photographs."""

    backbone: Backbone
    reading: NetworkReading
    pretrained: bool
    """Whether its weights were trained; else they were drawn."""

    @property
    def readout(self) -> ReadoutFacts:
        """How the head is read, as a card says it."""
        return readout_facts(self.backbone)

    @property
    def weights(self) -> int:
        """Numbers of the network."""
        return sum(tensor.numel() for tensor in self.backbone.network.parameters())


def inspect_network(
    network: str | NetworkWords,
    rows: RowsOption = "auto",
    *,
    machine: Machine | None = None,
    progress: Progress = LOGGED,
) -> NetworkInspection:
    """Load a network, prove how its head is read, and look at its rows on two photographs.

    Args:
        network: timm name, hf-hub:org/name, local-dir:PATH, or more words about it.
        rows: which rows the head is read through.
        machine: threads, and whether weights may be downloaded; the network runs on the CPU in float32.
        progress: is told stages and notes.

    Raises:
        UsageError: the network is unknown, or is to have weights and none.
        InputError: its weights are not to be had, or it reads no images of its size.
        NotExactError: its classifier cannot be written as a sum over rows.
    """
    words, machine = NetworkWords.of(network), machine or Machine()
    check_weights(words)
    with threads_of(machine):
        progress.stage("loading the model and proving how its head is read")
        backbone, notes = load_backbone(request_of(words, rows=rows, offline=machine.offline))
        progress.stage("reading two photographs")
        seen = backbone.preprocessing
        reading = read_network(backbone, sample_crops(crop_of(seen), seen.input_size[0]))
    for note in notes:
        progress.note(note)
    return NetworkInspection(backbone=backbone, reading=reading, pretrained=words.pretrained)
