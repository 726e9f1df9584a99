"""What a machine is like, in words."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from protonmf_cli.jobs.doctor import Diagnosis


def doctor_lines(diagnosis: "Diagnosis") -> list[str]:
    """Facts by topic, then each problem with what to do."""
    packages = diagnosis.packages
    topics = {
        "versions": ", ".join(f"{name} {version}" for name, version in diagnosis.versions.items()),
        "platform": diagnosis.platform,
        "devices": ", ".join(packages.devices) or "none",
        "threads": f"{packages.threads} of {diagnosis.cores} cores",
        "disk": f"{diagnosis.free_disk_bytes / 2**30:.0f} GiB free in {diagnosis.folder}",
        "offline": "yes (HF_HUB_OFFLINE)" if diagnosis.offline else "no",
        "state": diagnosis.state_folder,
    }
    lines = [f"{name:>9}  {text}" for name, text in topics.items()]
    for problem in diagnosis.problems:
        lines += [f"  problem  {problem.what}", f"       do  {problem.do}"]
    return lines if diagnosis.problems else [*lines, "all is well"]
