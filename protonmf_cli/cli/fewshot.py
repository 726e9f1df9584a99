"""protonmf fewshot: soft prototypes on a frozen network from a handful of images per class."""

import typer

from protonmf_cli.cli.fewshot_benchmark import benchmark
from protonmf_cli.cli.fewshot_fit import fit
from protonmf_cli.cli.fewshot_interpret import interpret
from protonmf_cli.cli.fewshot_predict import predict

app = typer.Typer(
    name="fewshot",
    no_args_is_help=True,
    help="The few-shot prototype model: soft prototypes on a frozen network and a sparse layer from prototypes to "
    "classes; its files work in explain, intervene, evaluate and inspect.",
)
COMMANDS = (fit, predict, interpret, benchmark)
