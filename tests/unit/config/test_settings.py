"""Settings come from the environment alone, and every error names the variable and what it may be."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from config.settings import Settings, SettingsError, load_settings


def test_an_empty_environment_gives_the_defaults() -> None:
    assert load_settings({}) == Settings()


def test_overrides_win_over_the_environment() -> None:
    assert load_settings({"CFAB_API_PORT": "9000"}, api_port=9001).api_port == 9001


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CFAB_API_PORT", "http"),
        ("CFAB_SLOTS", "-1"),
        ("CFAB_LEASE_S", "0"),
        ("CFAB_LEASE_S", "nan"),
        ("CFAB_LEASE_S", "a minute"),
        ("CFAB_LEASE_S", "inf"),
        ("CFAB_SANDBOX", "maybe"),
        ("CFAB_LOG_FORMAT", "xml"),
        ("CFAB_METRICS_OPEN", "perhaps"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_its_variable(variable: str, value: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings({variable: value})
    assert variable in str(refused.value)
    assert repr(value) in str(refused.value)
    assert "literal" not in str(refused.value) and "could not" not in str(refused.value), "Python's words help nobody"


def test_a_misspelt_variable_is_refused() -> None:
    with pytest.raises(SettingsError, match="CFAB_DATABSE_URL is not a setting; did you mean CFAB_DATABASE_URL"):
        load_settings({"CFAB_DATABSE_URL": "x"})


def test_variables_of_others_are_left_alone() -> None:
    assert (
        load_settings({"PATH": "/bin", "CFAB_JOB_ID": "1", "CFAB_ATTEMPT": "1", "CFAB_CONFIG": "/x", "CFAB_GPUS": ""})
        == Settings()
    )


def test_a_secret_comes_from_a_file_without_its_line_end(tmp_path: Path) -> None:
    secret = tmp_path / "url"
    secret.write_text("postgresql://u:p@h/d\n")
    assert load_settings({"CFAB_DATABASE_URL_FILE": str(secret)}).database_url == "postgresql://u:p@h/d"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"CFAB_DATABASE_URL_FILE=.*none.*No such file"):
        load_settings({"CFAB_DATABASE_URL_FILE": str(tmp_path / "none")})


def test_a_lease_must_outlast_two_renewals_and_the_margin() -> None:
    with pytest.raises(SettingsError, match="CFAB_LEASE_S must exceed"):
        load_settings({"CFAB_LEASE_S": "15", "CFAB_RENEW_S": "5", "CFAB_FENCE_MARGIN_S": "5"})
    assert load_settings({"CFAB_LEASE_S": "15.1", "CFAB_RENEW_S": "5", "CFAB_FENCE_MARGIN_S": "5"}).lease_s == 15.1


def test_no_secret_is_shown_with_the_settings() -> None:
    secrets = [f.name for f in fields(Settings) if f.metadata["secret"]]
    assert {"database_url", "broker_url", "api_token"} <= set(secrets)
    shown = repr(Settings(**dict.fromkeys(secrets, "hush-hush")))
    assert "hush" not in shown


def test_lists_are_split_at_commas() -> None:
    assert load_settings({"CFAB_FETCH_HOSTS": " a.example , *.b.example,"}).fetch_hosts == ("a.example", "*.b.example")
