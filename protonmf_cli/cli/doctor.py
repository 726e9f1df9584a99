"""protonmf doctor: is this machine ready, and if not, what to do."""

from typing import Annotated

from protonmf_cli import jobs
from protonmf_cli.cli import arguments
from protonmf_cli.cli.console import Shown
from protonmf_cli.cli.groups import Group
from protonmf_cli.output.records.doctor import doctor_json
from protonmf_cli.output.text.doctor import doctor_lines

JSON_ALONE = Group(Shown, as_json=arguments.Json)


def doctor(shown: Annotated[Shown, JSON_ALONE]) -> None:
    """Show versions, device, threads, disk and known problems, each with what to do.

    Example: protonmf doctor
    """
    found = jobs.doctor.diagnose()
    if shown.as_json:
        shown.json(doctor_json(found))
        return
    for line in doctor_lines(found):
        shown.out.print(line, markup=False)
