"""The state of a training run on disk, whole after every step."""

import json

import safetensors
import safetensors.torch

from protonmf_cli.errors import InputError
from protonmf_cli.files.atomic import write_atomically
from protonmf_cli.files.work.folder import WorkFolder
from protonmf_cli.models.protopnet.training_state import TrainingState

KEY = "protonmf_training"


class TrainingFolder(WorkFolder):
    """Work folder of a training run; it also says what the run was asked for."""

    job = "training"

    def save(self, state: TrainingState) -> None:
        """Replace the stored state."""
        facts = {name: value for name, value in vars(state).items() if name != "tensors"}
        metadata = {KEY: json.dumps(facts)}
        whole = {name: tensor.contiguous() for name, tensor in state.tensors.items()}
        content = safetensors.torch.save(whole, metadata=metadata)
        write_atomically(self.folder / "state.safetensors", content)

    def load(self) -> TrainingState:
        """The stored state, or a new one.

        Raises:
            InputError: the file is damaged.
        """
        path = self.folder / "state.safetensors"
        if not path.is_file():
            return TrainingState()
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()[KEY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (safetensors.SafetensorError, OSError, KeyError, ValueError) as failure:
            raise InputError(f"{path} is damaged ({failure}). Remove {self.folder} to start again.") from failure
        return TrainingState(tensors=tensors, **facts)

    def note_width(self, width: int, fold: int, accuracy: float) -> None:
        """Keep the result of one training of a cross-validation."""
        known = self.widths() | {f"{width}/{fold}": accuracy}
        write_atomically(self.folder / "widths.json", json.dumps(known).encode())

    def widths(self) -> dict[str, float]:
        """Finished trainings of a cross-validation: "width/fold" -> accuracy."""
        path = self.folder / "widths.json"
        return json.loads(path.read_text()) if path.is_file() else {}
