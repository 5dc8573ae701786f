"""The command line: ``pliant demo | run | list | show | report | units | diagnose``.

Each command is a dataclass in :mod:`pliant.commands`: its fields are the options, its ``run`` does the work. Whatever
a user may get wrong ends in one line on stderr and exit code 2; exit code 1 means that a run failed, 130 that it was
interrupted, 3 to 5 what ``diagnose`` found. Nothing here imports PyTorch, so that help and errors come at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any, Union

from pliant.bench.names import unknown
from pliant.commands import COMMANDS, Command
from pliant.errors import IllegalConfiguration, PliantError

__all__ = ["main"]

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

_DESCRIPTION = """Keep neural networks able to learn: see, measure and prevent loss of plasticity.

New here? `pliant demo` shows it on real data in a few minutes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments after ``pliant``; None: those of this process.

    Returns:
        The exit code: 0, 1 where a run failed, 2 for what the user can mend, 3 to 5 as a diagnosis says, 130 after
        Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if os.getcwd() not in sys.path:  # `my.module:Class` is looked up from where the user stands
        sys.path.insert(0, os.getcwd())
    try:
        command = _parse(arguments)
        return 0 if command is None else command.run()
    except PliantError as error:
        if debug:
            traceback.print_exc()
        print(f"pliant: {_one_line(str(error))}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("pliant: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `pliant list | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parse(arguments: list[str]) -> Command | None:
    """Return the command with its options, or None where help or the version was asked for and given."""
    if not arguments or arguments[0] in ("-h", "--help"):
        _print_help()
        return None
    if arguments[0] == "--version":
        from pliant import __version__

        print(f"pliant {__version__}")
        return None
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    cls = COMMANDS[name]
    _check_options(name, cls, rest)
    return _tyro(cls, f"pliant {name}", cls.describe(), rest)


def _check_options(name: str, cls: type[Command], arguments: list[str]) -> None:
    """Options that do not exist, said in one line with the nearest that do."""
    options = [field.name for field in dataclasses.fields(cls) if field.name not in cls.positional]
    valid = [f"--{name.replace('_', '-')}" for name in options] + ["--help"]
    for argument in arguments:
        option = argument.partition("=")[0].replace("_", "-")
        if option.startswith("--") and option not in valid:
            raise unknown(f"option of pliant {name}", option, valid)


def _tyro(target: Any, prog: str, description: str, arguments: list[str]) -> Command | None:
    """Parse with tyro; its framed messages become one line."""
    import tyro

    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            parsed: Command = tyro.cli(
                target,
                prog=prog,
                description=description,
                args=arguments,
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.HelptextFromCommentsOff, tyro.conf.DisallowNone),
            )
        return parsed
    except SystemExit as ending:
        if not ending.code:
            return None
        # A frame with a title, the message, a rule, and more; of ASCII where stderr can do no better.
        lines = [line.strip(" ╭╮╰╯│|") for line in messages.getvalue().splitlines()][1:]
        body = itertools.dropwhile(lambda line: line.startswith(("─", "--")), lines)
        text = itertools.takewhile(lambda line: not line.startswith(("───", "---")), body)
        message = _one_line(" ".join(text)).partition(" Got errors")[0]
        wrong = re.fullmatch(r"Error parsing (\S+): .*?(\S+) could be instantiated from \['(.*)'\]\.", message)
        if wrong:
            message = f"{wrong[1]} {wrong[3]}: expected {wrong[2]}"
        raise IllegalConfiguration(f"{message.rstrip('.')}; see {prog} --help") from None


def _print_help() -> None:
    import tyro

    commands = tuple(
        Annotated[cls, tyro.conf.subcommand(name, description=cls.summary())] for name, cls in COMMANDS.items()
    )
    examples = "\n".join(f"  {cls.examples[0]}" for cls in COMMANDS.values())
    description = f"{_DESCRIPTION}\n\nexamples:\n{examples}\n\n`pliant COMMAND --help` says more about each."
    with contextlib.suppress(SystemExit):
        tyro.cli(Union[commands], prog="pliant", description=description, args=["--help"])  # type: ignore[call-overload]  # noqa: UP007


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main())
