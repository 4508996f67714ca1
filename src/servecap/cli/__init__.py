"""The command line: `servecap run`, `find`, `matrix`, `plan`, `emulate`, `report`, `demo`."""

from __future__ import annotations

import copy
import gc
import importlib
import os
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# Threads of a linear algebra library would fight with the load for the cores (and the small
# matrices here are faster without them). To be set before numpy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from servecap import __version__
from servecap.errors import ServecapError

# name -> what `servecap --help` says of it; the modules themselves load only when they are used
COMMANDS = {
    "run": "Load a server with users (or a rate of requests) and report every figure.",
    "find": "Find the most users for whom the SLO holds.",
    "matrix": "Fill the key performance matrix: model x GPU x TP x scenario.",
    "plan": "From a matrix to a deployment: which GPU, how split, how many nodes.",
    "predict": "Predict cells that nobody measured, each figure with an interval.",
    "calibrate": "Fit the engine model to measured cells.",
    "emulate": "Serve like an LLM server, without a GPU.",
    "report": "Show stored runs, searches, matrices and plans; write one HTML page.",
    "import": "Turn result files of other load testers into runs, or into a cell.",
    "compare": "Say what changed between runs or searches by more than noise.",
    "audit": "Hold a table, a run or a search against itself: what cannot be, and what it should.",
    "self-test": "Measure what this machine's client itself can do.",
    "workload": "Describe a data set or a trace, or write a smaller one like it.",
    "export": "Write a stored run as CSV, Parquet, Excel, OpenMetrics text or OTLP.",
    "doctor": "Look for what would spoil a measurement, here and at a server.",
    "demo": "The whole way on the embedded emulator, in under three minutes.",
}

COMPLETING = "_SERVECAP_COMPLETE"  # set by the shell that asks what may follow
MODULES = {"import": "importing"}  # of commands that are no names in Python

EPILOG = """\b
Examples:
  servecap run --url http://localhost:8000 --users 64
  servecap find --url http://localhost:8000 --slo "ttft.p95<2s,tpot.mean<80ms"
  servecap plan cells.csv --users 10000 --gpus-per-node 8
\b
Exit codes: 0 done; 1 an SLO or a --fail-on does not hold, or a cell of a matrix stayed empty;
2 bad usage, or a file that cannot be read or written (the disk is full); 3 the server cannot be
used; 4 the run is INVALID, or an audit found what cannot be; 130 ended by Ctrl-C.
"""


def _command(name: str) -> click.Command:
    module = importlib.import_module(f"servecap.cli.{MODULES.get(name, name.replace('-', '_'))}")
    command: click.Command = module.command
    if COMPLETING in os.environ:
        from servecap.cli import completion

        completion.teach(command, name)
    _from_environment(command, f"SERVECAP_{name}")
    return command


def _from_environment(command: click.Command, prefix: str) -> None:
    """Every option is read from the variable that is named like it, however it is called inside.

    Of an option that may be given several times each line of the variable is one value: headers
    have blanks in them.
    """
    for param in command.params:
        if not isinstance(param, click.Option) or param.envvar is not None:
            continue
        name = max(param.opts, key=len).lstrip("-")
        param.envvar = f"{prefix}_{name}".replace("-", "_").upper()
        if param.multiple:
            param.type = copy.copy(param.type)
            param.type.envvar_list_splitter = "\n"  # type: ignore[misc]
    for name, below in command.commands.items() if isinstance(command, click.Group) else ():
        _from_environment(below, f"{prefix}_{name}")


class _Lazy(click.Group):
    """Lists the commands without loading them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        return _command(cmd_name)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """Commands with what they do, without loading them; and the options before them."""
        from click.shell_completion import CompletionItem

        known = [(x, said) for x, said in COMMANDS.items() if x.startswith(incomplete)]
        options = click.Command.shell_complete(self, ctx, incomplete)
        return [CompletionItem(name, help=said) for name, said in known] + options

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, which names near options but no near commands."""
        if args[0] not in COMMANDS:
            import difflib  # costs milliseconds

            if near := difflib.get_close_matches(args[0], COMMANDS, n=1):
                ctx.fail(f"No such command {args[0]!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _configured(ctx: click.Context, _: click.Parameter, path: str | None) -> None:
    """Options from a file become the commands' defaults."""
    if path is not None:
        from servecap.cli import config

        ctx.default_map = config.read(path, list(COMMANDS), _command)


@click.group(
    cls=_Lazy,
    epilog=EPILOG,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "auto_envvar_prefix": "SERVECAP",
        "max_content_width": 100,
    },
)
@click.version_option(__version__, prog_name="servecap")
@click.option(
    "--config",
    type=click.Path(dir_okay=False),
    is_eager=True,
    expose_value=False,
    callback=_configured,
    help="YAML file of options for each command: {run: {users: 64}}.",
)
def cli() -> None:
    """How many users can this LLM service carry, and what must I buy to carry more?"""


def _printable(text: str) -> str:
    """What it says, without the power over a terminal that names of files may have."""
    from servecap.report import units

    return "\n".join(units.clean(line, len(line) * 6) for line in text.split("\n"))


def main() -> None:
    """Run the command line; a deliberate failure is one line on stderr and an exit code."""
    if COMPLETING in os.environ:
        from servecap.cli import completion  # noqa: F401  (what it tells fish)
    try:
        code = cli.main(standalone_mode=False)
    except ServecapError as error:
        click.echo(f"error: {_printable(str(error))}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("ended by Ctrl-C", err=True)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `| head` is no failure
        sys.exit(0)
    gc.freeze()  # all ends with the process: looking through it first takes a tenth of a second
    sys.exit(code if isinstance(code, int) else 0)
