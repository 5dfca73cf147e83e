"""Settings about images: the older word for signed still holds, and registries are named by host and port."""

from __future__ import annotations

import pytest

from config.settings import SettingsError, load_settings


@pytest.mark.parametrize(
    ("word", "policy"), [("off", "off"), ("digest", "digest"), ("signed", "signed"), ("required", "signed")]
)
def test_policy_is_one_of_three_and_the_older_word_means_signed(word: str, policy: str) -> None:
    assert load_settings({"CFAB_IMAGE_SIGNATURES": word}).image_signatures == policy


def test_registries_are_hosts_with_or_without_a_port() -> None:
    text = "registry.internal:5000, http://127.0.0.1:5000,http://[::1]:5000, plain"
    hosts = load_settings({"CFAB_REGISTRY_HOSTS": text}).registry_hosts
    assert hosts == ("registry.internal:5000", "http://127.0.0.1:5000", "http://[::1]:5000", "plain")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CFAB_IMAGE_SIGNATURES", "maybe"),
        ("CFAB_REGISTRY_HOSTS", "https://registry.internal"),
        ("CFAB_REGISTRY_HOSTS", "registry.internal/path"),
        ("CFAB_REGISTRY_HOSTS", "me:secret@registry.internal"),
    ],
)
def test_what_cannot_be_is_said_with_its_variable(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        load_settings({name: value})
