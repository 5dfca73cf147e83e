"""docker-compose.yml gives its roles settings that exist and can be used, runs every role, and opens its ports."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from click import Context

from app.cli.main import main
from config.settings import Settings, load_settings

COMPOSE: dict[str, Any] = yaml.safe_load((Path(__file__).parents[3] / "docker-compose.yml").read_text())
ROLES = ("migrate", "api", "scheduler", "worker", "flower")
ANSWERED = {"CFAB_DATABASE_PASSWORD": "d", "CFAB_AGENT_PASSWORD": "a", "CFAB_BROKER_PASSWORD": "b", "CFAB_TOKEN": "t"}


def environment(role: str, **given: str) -> dict[str, str]:
    """A role's variables, with those of .env put in as Docker Compose does."""
    known = {**ANSWERED, **given}

    def put_in(match: re.Match[str]) -> str:
        name, how, rest = match.groups()
        return known.get(name) or (rest if how == ":-" else pytest.fail(f"{name} is not said to be needed"))

    variable = re.compile(r"\$\{([A-Z_]+)(:-|:\?)([^}]*)\}")
    return {name: variable.sub(put_in, str(text)) for name, text in COMPOSE["services"][role]["environment"].items()}


@pytest.mark.parametrize("role", ROLES)
def test_the_variables_of_a_role_are_settings_that_can_be_used(role: str) -> None:
    assert load_settings(environment(role)).broker_url == "redis://:b@valkey:6379/0"


def test_the_api_trusts_the_machines_token_alone_unless_told_otherwise() -> None:
    here, default = load_settings(environment("api")), Settings()
    assert (here.api_token, here.auth_keys, here.rate_limits) == ("t", "", default.rate_limits)
    for name in (field.name for field in fields(Settings) if field.name.startswith("auth")):
        assert getattr(here, name) == getattr(default, name), name


def test_an_identity_provider_of_the_environment_file_reaches_the_api() -> None:
    told = {
        "CFAB_AUTH_KEYS": "https://sso.example.com/certs", "CFAB_AUTH_ISSUER": "https://sso.example.com",
        "CFAB_AUTH_ALGORITHMS": "ES256", "CFAB_AUTH_ROLE_PREFIX": "fabric-",
    }  # fmt: skip
    here = load_settings(environment("api", **told))
    assert (here.auth_keys, here.auth_issuer, here.auth_role_prefix) == (*list(told.values())[:2], "fabric-")


def test_every_port_that_the_api_listens_on_is_open_on_this_machine_only() -> None:
    here = Settings()
    ports = [f"127.0.0.1:{port}:{port}" for port in (here.api_port, here.ai_port, here.gpu_port)]
    assert COMPOSE["services"]["api"]["ports"] == ports


def test_every_role_is_run_by_a_command_that_exists() -> None:
    commands = {name: service["command"][0] for name, service in COMPOSE["services"].items() if name in ROLES}
    assert commands == {role: role for role in ROLES}
    assert all(main.get_command(Context(main), role) is not None for role in commands)
