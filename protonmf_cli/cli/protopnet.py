"""protonmf protopnet: train, push, prune, combine, evaluate "this looks like that" networks."""

import typer

from protonmf_cli.cli.protopnet_analysis import evaluate, local
from protonmf_cli.cli.protopnet_edit import combine, prune, push
from protonmf_cli.cli.protopnet_train import train

app = typer.Typer(
    name="protopnet",
    no_args_is_help=True,
    help="ProtoPNet (Chen et al. 2019): train, push, prune, combine and evaluate; its files work in explain, "
    "intervene, evaluate and inspect.",
)
COMMANDS = (train, push, prune, combine, evaluate, local)
