"""trimtab(1) and the commands agree, and groff has nothing to say against it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from bus.config import Config, Narrow, Tape
from trimtab.cli import cli
from trimtab.cli_tapes import COMMANDS

PAGE = Path(__file__).resolve().parent.parent / "docs/trimtab.1"


def commands(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


@pytest.fixture(scope="module")
def text() -> str:
    """The page as a reader sees it, in one line."""
    argv = ["groff", "-man", "-Tascii", "-P-cbou", "-rLL=300n", str(PAGE)]
    return " ".join(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("name", [name for name, _ in commands(cli)])
def test_the_page_has_each_command_with_an_example(text: str, name: str) -> None:
    assert re.search(rf"\$ (sudo )?trimtab {name}\b", text)


@pytest.mark.parametrize(("name", "command"), list(commands(cli)))
def test_the_page_has_each_option(text: str, name: str, command: click.Command) -> None:
    for option in (word for param in command.params for word in param.opts if word.startswith("--")):
        assert option in text, f"{name} {option}"


@pytest.mark.parametrize(("name", "command"), list(commands(cli)))
def test_each_command_about_an_instance_takes_the_directories(name: str, command: click.Command) -> None:
    options = {word for param in command.params for word in param.opts}
    others = name == "demo" or name.split(maxsplit=1)[0] in {about_tapes.name for about_tapes in COMMANDS}
    assert ({"--run-dir", "--state-dir"} <= options) == (not others)


@pytest.mark.parametrize("code", re.findall(r"(\d+) [a-z]", str(cli.epilog)))
def test_the_page_has_each_exit_code(text: str, code: str) -> None:
    assert re.search(rf" {code} [A-Z]", text.partition("EXIT STATUS")[2].partition("ENVIRONMENT")[0])


@pytest.mark.parametrize("key", [*Config.__struct_fields__, *Narrow.__struct_fields__, *Tape.__struct_fields__])
def test_the_page_has_each_key_of_the_configuration(text: str, key: str) -> None:
    # Its heading: other sections point to it.
    assert re.search(rf"\b{key}\b", text.rpartition(" CONFIGURATION ")[2].partition("EXIT STATUS")[0])


def test_groff_warns_of_nothing() -> None:
    ran = subprocess.run(["groff", "-man", "-ww", "-z", str(PAGE)], capture_output=True, text=True, check=True)
    assert ran.stderr == ""
