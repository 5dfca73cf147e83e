"""`cfab` finds every command, costs nothing for those not used, and refuses a role that cannot start in one line."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner, Result

from app.cli.failure import ExitCode
from app.cli.main import main


def cfab(*words: str, **variables: str) -> Result:
    return CliRunner().invoke(main, list(words), env=variables)


@pytest.mark.parametrize("name", main.list_commands(click.Context(main)))
def test_every_command_of_the_list_exists_and_explains_itself(name: str) -> None:
    result = cfab(name, "--help")

    assert result.exit_code == ExitCode.OK
    assert f"Usage: cfab {name}" in result.output.replace("main", "cfab")
    assert name in cfab("--help").output


def test_the_list_of_commands_imports_none_of_them() -> None:
    code = (
        "import sys; from app.cli.main import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "print([name for name in ('celery', 'flask', 'sqlalchemy', 'requests', 'psutil') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "[]"


def test_an_unknown_command_is_named() -> None:
    result = cfab("sumbit")

    assert result.exit_code == ExitCode.USAGE
    assert "No such command 'sumbit'" in result.output


@pytest.mark.parametrize(
    ("words", "variables", "message"),
    [
        (["api"], {}, "CFAB_DATABASE_URL must be set"),
        (["api"], {"CFAB_DATABASE_URL": "postgresql://x/y"}, "CFAB_API_TOKEN or CFAB_API_TOKEN_FILE must be set"),
        (["worker"], {}, "CFAB_DATABASE_URL (or CFAB_AGENT_DATABASE_URL) must be set"),
        (["scheduler"], {}, "CFAB_DATABASE_URL must be set"),
        (["migrate"], {}, "CFAB_DATABASE_URL must be set"),
        (["migrate"], {"CFAB_DATABASE_URL": "postgresql://127.0.0.1:1/none"}, "cannot be reached"),
        (["flower"], {}, "CFAB_BROKER_URL must be set"),
        (["flower"], {"CFAB_BROKER_URL": "redis://x"}, "it is Flower's password"),
        (
            ["flower", "--host", "0.0.0.0"],
            {"CFAB_BROKER_URL": "redis://x", "CFAB_AUTH": "off"},
            "works on a loopback address only",
        ),
        (["api"], {"CFAB_API_PORT": "many"}, "CFAB_API_PORT='many' cannot be used"),
        (["worker"], {"CFAB_SLOT": "3"}, "CFAB_SLOT is not a setting"),
        (["migrate"], {"CFAB_DATABASE_URL_FILE": "/nowhere"}, "'/nowhere' cannot be read"),
    ],
)
def test_a_role_that_cannot_start_says_why_in_one_line(
    words: list[str], variables: dict[str, str], message: str
) -> None:
    result = cfab(*words, **variables)

    assert result.exit_code in {ExitCode.USAGE, ExitCode.JOB_FAILED}
    assert message in result.output
    assert result.output.startswith(f"cfab {words[0]}: ")
    assert "Traceback" not in result.output
