"""The command `jaxnet`."""

import sys

import click
from rich.console import Console
from rich.table import Table

import jaxnet
from jaxnet.cli.bench import bench
from jaxnet.cli.errors import guarded
from jaxnet.cli.machine import OPS, chosen, facts
from jaxnet.cli.verify import verify
from jaxnet.ops import dispatch


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(jaxnet.__version__, prog_name="jaxnet")
@click.pass_context
def commands(context: click.Context) -> None:
    """Neural networks as pure functions in JAX, every backward pass written by hand and proved."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@commands.command()
def info() -> None:
    """Show what jaxnet runs on, and which kernels are built and would be chosen."""
    console = Console()
    for name, value in facts().items():
        console.print(f"{name:<10} {value}", highlight=False, soft_wrap=True)
    table = Table("op", "implementations", "chosen here", "remark")
    for op in OPS:
        found = dispatch.implementations(op)
        remark = "; ".join(f"{name}: {reason}" for name, reason in found.items() if reason)
        table.add_row(op, ", ".join(found), chosen(op), remark)
    console.print(table)


commands.add_command(bench)
commands.add_command(verify)


def main() -> None:
    """Runs the command line."""
    sys.exit(guarded(lambda: commands.main(standalone_mode=False)))
