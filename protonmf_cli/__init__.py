"""protonmf: a trained black-box image classifier as a prototype-based interpretable model, its accuracy untouched.

Everything that the command line does is a function here, with the same options. The names are imported when they are
first used, so that `import protonmf_cli` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from protonmf_cli.errors import GateError, InputError, ModelFileError, NotExactError, ProtonmfError, UsageError

if TYPE_CHECKING:
    from protonmf_cli.jobs.audit import Audited, audit
    from protonmf_cli.jobs.conversion import Conversion, ConvertedShare, convert, convert_share
    from protonmf_cli.jobs.evaluation import Evaluation, evaluate
    from protonmf_cli.jobs.explanation import explain
    from protonmf_cli.jobs.export import export
    from protonmf_cli.jobs.fewshot.fitting import fit_fewshot
    from protonmf_cli.jobs.gates import check_gates
    from protonmf_cli.jobs.inspection import inspect
    from protonmf_cli.jobs.intervention import Intervention, intervene, suspicious_edits
    from protonmf_cli.jobs.loaded import Explanation, Loaded, load
    from protonmf_cli.jobs.naming import Naming, drop_names, name
    from protonmf_cli.jobs.network_inspection import inspect_network
    from protonmf_cli.jobs.page import report
    from protonmf_cli.jobs.patches import PatchInspection, check_patches, inspect_patches
    from protonmf_cli.jobs.protopnet.training import train_protopnet
    from protonmf_cli.jobs.push import push
    from protonmf_cli.models.prototype import PrototypeModel
    from protonmf_cli.models.results import Contrast, Edit
    from protonmf_cli.options import (
        AuditOptions,
        ConversionOptions,
        Distribution,
        EditWords,
        ExplainOptions,
        FewShotOptions,
        FineTuneOptions,
        GateOptions,
        ImageWords,
        Machine,
        NetworkWords,
        NmfOptions,
        Output,
        PageOptions,
        ProtoPNetOptions,
        Share,
        TableOptions,
    )

__version__ = "0.2.0"

_PLACES = {
    "jobs.audit": ("Audited", "audit"),
    "jobs.conversion": ("Conversion", "ConvertedShare", "convert", "convert_share"),
    "jobs.evaluation": ("Evaluation", "evaluate"),
    "jobs.explanation": ("explain",),
    "jobs.export": ("export",),
    "jobs.fewshot.fitting": ("fit_fewshot",),
    "jobs.gates": ("check_gates",),
    "jobs.inspection": ("inspect",),
    "jobs.intervention": ("Intervention", "intervene", "suspicious_edits"),
    "jobs.loaded": ("Explanation", "Loaded", "load"),
    "jobs.naming": ("Naming", "drop_names", "name"),
    "jobs.network_inspection": ("inspect_network",),
    "jobs.page": ("report",),
    "jobs.patches": ("PatchInspection", "check_patches", "inspect_patches"),
    "jobs.protopnet.training": ("train_protopnet",),
    "jobs.push": ("push",),
    "models.prototype": ("PrototypeModel",),
    "models.results": ("Contrast", "Edit"),
    "options": (
        "AuditOptions", "ConversionOptions", "Distribution", "EditWords", "ExplainOptions", "FewShotOptions",
        "FineTuneOptions", "GateOptions", "ImageWords", "Machine", "NetworkWords", "NmfOptions", "Output",
        "PageOptions", "ProtoPNetOptions", "Share", "TableOptions",
    ),
}  # fmt: skip
_PLACE_OF = {name: place for place, names in _PLACES.items() for name in names}

__all__ = [
    "AuditOptions",
    "Audited",
    "Contrast",
    "Conversion",
    "ConversionOptions",
    "ConvertedShare",
    "Distribution",
    "Edit",
    "EditWords",
    "Evaluation",
    "ExplainOptions",
    "Explanation",
    "FewShotOptions",
    "FineTuneOptions",
    "GateError",
    "GateOptions",
    "ImageWords",
    "InputError",
    "Intervention",
    "Loaded",
    "Machine",
    "ModelFileError",
    "Naming",
    "NetworkWords",
    "NmfOptions",
    "NotExactError",
    "Output",
    "PageOptions",
    "PatchInspection",
    "ProtoPNetOptions",
    "ProtonmfError",
    "PrototypeModel",
    "Share",
    "TableOptions",
    "UsageError",
    "__version__",
    "audit",
    "check_gates",
    "check_patches",
    "convert",
    "convert_share",
    "drop_names",
    "evaluate",
    "explain",
    "export",
    "fit_fewshot",
    "inspect",
    "inspect_network",
    "inspect_patches",
    "intervene",
    "load",
    "name",
    "push",
    "report",
    "suspicious_edits",
    "train_protopnet",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACE_OF:
        raise AttributeError(f"module 'protonmf_cli' has no attribute {name!r}")
    return getattr(import_module(f"protonmf_cli.{_PLACE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
