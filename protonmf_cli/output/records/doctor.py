"""What a machine is like, as JSON."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from protonmf_cli.jobs.doctor import Diagnosis


def doctor_json(diagnosis: "Diagnosis") -> dict[str, Any]:
    """`protonmf.doctor/1`: versions, devices, threads, disk and known problems."""
    packages = diagnosis.packages
    return {
        "schema": "protonmf.doctor/1",
        "versions": dict(diagnosis.versions),
        "platform": diagnosis.platform,
        "devices": list(packages.devices),
        "threads": packages.threads,
        "torch_error": packages.torch_error,
        "timm": packages.timm,
        "torchvision_operators": packages.torchvision_operators,
        **({} if packages.timm_error is None else {"timm_error": packages.timm_error}),
        "cores": diagnosis.cores,
        "free_disk_bytes": diagnosis.free_disk_bytes,
        "offline": diagnosis.offline,
        "state_folder": diagnosis.state_folder,
        "problems": [{"what": problem.what, "do": problem.do} for problem in diagnosis.problems],
    }
