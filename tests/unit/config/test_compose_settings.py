"""docker-compose.yml gives its roles settings that exist, and runs every role."""

from __future__ import annotations

import re
from pathlib import Path

from click import Context

from app.cli.main import main
from config.settings import load_settings

COMPOSE = (Path(__file__).parents[3] / "docker-compose.yml").read_text()
# Given to PostgreSQL's image, for the script that makes the agents' login.
NOT_SETTINGS = {"CFAB_AGENT_PASSWORD"}


def test_every_variable_of_a_role_is_a_setting() -> None:
    named = dict(re.findall(r"^ +(CFAB_[A-Z_]+): *(.*)$", COMPOSE, re.MULTILINE))
    plain = {name: value.strip('"') for name, value in named.items() if name not in NOT_SETTINGS}

    assert load_settings(plain).database_url


def test_every_role_is_run_by_a_command_that_exists() -> None:
    run = set(re.findall(r'^    command: \["([a-z]+)"', COMPOSE, re.MULTILINE)) - {"postgres"}

    assert run == {"migrate", "api", "scheduler", "worker", "flower"}
    assert all(main.get_command(Context(main), role) is not None for role in run)
