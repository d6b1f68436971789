"""Write the reference's page of command lines from the commands' own parsers.

    python -m docs.commands

A test holds the committed page to what this writes. It is not the text of ``--help``, whose layout changes with the
version of Python and the width of the terminal.
"""

from __future__ import annotations

import argparse
import importlib
import re
from pathlib import Path
from unittest import mock

PAGE = Path(__file__).parent / "reference" / "commands.md"
COMMANDS = {
    "mren": ("upscale", "train", "evaluate", "export", "onnxfile", "attention", "compare", "ablate", "report"),
    "drop_in": ("compare", "report"),
}
HEAD = """# Command lines

<!-- Written by python -m docs.commands: change the commands, not this page. -->

The commands of `examples`: `python -m` and the name, from the root of a clone, after `pip install -e ".[examples]"`.
Each has `--help`. The READMEs beside them, `examples/mren/README.md` and `examples/drop_in/README.md`, show them at
work.

| a command ends with | if |
|---|---|
| 0 | all was done |
| 1 | a file or a value was at fault: a line for each begins with `error:` and names it; the rest was done |
| 2 | nothing was done, because of how it was called |
| 130, 143, 129 | it was interrupted by Ctrl-C, SIGTERM or SIGHUP; no file is half written |

Results go to stdout; progress, notes and errors to stderr.
"""


class _ParserIsCompleteError(Exception):
    """What stops a command at the moment when its parser is complete."""


def parser_of(module: str) -> argparse.ArgumentParser:
    """The parser that a command builds.

    Raises:
        RuntimeError: If the command parses nothing.
    """
    found: list[argparse.ArgumentParser] = []

    def stop(parser: argparse.ArgumentParser, *_: object) -> None:
        found.append(parser)
        raise _ParserIsCompleteError

    main = importlib.import_module(module).main
    with mock.patch.object(argparse.ArgumentParser, "parse_known_args", stop):
        try:
            main([])
        except _ParserIsCompleteError:
            return found[0]
    raise RuntimeError(f"{module}: parses no arguments.")


def _cell(text: str) -> str:
    text = " ".join(text.split())
    # JSON as code, with its quotes as they are typed; elsewhere what Markdown would take for markup.
    parts = re.split(r"('\{.*?\}')", text)
    return "".join(f"`{p}`" if p.startswith("'{") else re.sub(r"([|*<>_\[\]{}])", r"\\\1", p) for p in parts)


def _argument(action: argparse.Action) -> str:
    takes = "" if action.nargs == 0 else action.metavar or action.dest.upper()
    if isinstance(takes, tuple):  # a name for each of several values
        takes = " ".join(takes)
    if action.choices is not None and action.metavar is None:
        takes = ""
    several = {"+": " …", "*": " …", "?": "", None: ""}.get(action.nargs if isinstance(action.nargs, str) else None, "")
    if not action.option_strings:
        return f"`{takes or action.dest}{several}`" + (", optional" if action.nargs in ("?", "*") else "")
    names = ", ".join(f"`{name}`" for name in action.option_strings)
    value = f" `{takes}{several}`" if takes else several
    return names + value + (", required" if action.required else "")


def _meaning(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    # The column beside this one says the default.
    text = re.sub(r" \((default: )?%\(default\)s\)$", "", action.help or "") % {**vars(action), "prog": parser.prog}
    if action.choices is not None:
        choices = ", ".join(f"`{choice}`" for choice in action.choices)
        return "; ".join(part for part in (_cell(text), f"one of {choices}") if part)
    return _cell(text)


def _default(action: argparse.Action) -> str:
    if action.default is None or action.default is False or action.default in (argparse.SUPPRESS, [], {}):
        return ""
    values = action.default if isinstance(action.default, (list, tuple)) else [action.default]
    return " ".join(f"`{value}`" for value in values)


def section(module: str) -> str:
    """What the page says about one command."""
    parser = parser_of(module)
    lines = [f"## {module}", "", _cell(parser.description or ""), ""]
    actions = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    if not actions:
        return "\n".join([*lines, "Takes no arguments.", ""])
    lines += ["| argument | meaning | default |", "|---|---|---|"]
    lines += [f"| {_argument(action)} | {_meaning(action, parser)} | {_default(action)} |" for action in actions]
    return "\n".join([*lines, ""])


def page() -> str:
    """The whole page."""
    modules = [f"examples.{folder}.{name}" for folder, names in COMMANDS.items() for name in names]
    return "\n".join([HEAD, *map(section, modules)])


if __name__ == "__main__":
    PAGE.write_text(page())
