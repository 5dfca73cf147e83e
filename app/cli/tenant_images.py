"""`cfab tenant images`: show and change what a tenant's images must be: policy, keys, places, credentials by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from app.cli.client import Client
from app.cli.failure import ExitCode
from app.cli.options import whole_fabric_command
from app.cli.render import plain, print_json

POLICIES = ("off", "digest", "signed", "default")


class Pair(click.ParamType[tuple[str, str]]):
    """LEFT=RIGHT, as two texts."""

    name = "pair"

    def __init__(self, form: str) -> None:
        self._form = form

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Both sides; fails where one is missing."""
        if isinstance(value, tuple):
            return value
        left, _, right = str(value).partition("=")
        if not left or not right:
            self.fail(f"{value!r} must be {self._form}", param, ctx)
        return left, right


@click.command("images")
@click.argument("name", metavar="NAME_OR_ID")
@click.option("--policy", type=click.Choice(POLICIES), help="What images must have; default: as the fabric's own.")
@click.option(
    "--key", "keys", multiple=True, type=Pair("NAME=FILE"), metavar="NAME=FILE", help="Trust this key (cosign.pub)."
)
@click.option("--no-key", "no_keys", multiple=True, metavar="NAME", help="Trust the key of that name no more.")
@click.option("--repository", "places", multiple=True, metavar="PLACE", help="Allow images from here: ghcr.io/acme.")
@click.option("--no-repository", "no_places", multiple=True, metavar="PLACE", help="Take a place away.")
@click.option(
    "--credential", "credentials", multiple=True, type=Pair("REGISTRY=NAME"), metavar="REGISTRY=NAME",
    help="Sign in at a registry with the tenant's credential of that name, which lies on the nodes.",
)  # fmt: skip
@click.option("--no-credential", "no_credentials", multiple=True, metavar="REGISTRY", help="Sign in there no more.")
@whole_fabric_command
def command(*, client: Client, as_json: bool, name: str, **given: Any) -> ExitCode:
    """Show what a tenant's images must be; with options change it first. Lists keep what no option names."""
    trust = client.tenant_images(name)
    changes = changes_of(given, trust)
    if changes:
        trust = client.tenant_images(name, changes)
    if as_json:
        print_json(trust)
    else:
        click.echo("\n".join(describe(trust)))
    return ExitCode.OK


def changes_of(given: Mapping[str, Any], trust: Mapping[str, Any]) -> dict[str, Any]:
    """The options as the API's body, which names whole lists. Raises UsageError for what is not there."""
    changes: dict[str, Any] = {}
    if given["policy"]:
        changes["policy"] = None if given["policy"] == "default" else given["policy"]
    if given["keys"] or given["no_keys"]:
        keys = {key["name"]: key["pem"] for key in trust["keys"]}
        _take(keys, given["no_keys"], "key")
        keys |= {name: _read(path) for name, path in given["keys"]}
        changes["keys"] = [{"name": name, "pem": pem} for name, pem in keys.items()]
    if given["places"] or given["no_places"]:
        places = dict.fromkeys(trust["repositories"])
        _take(places, given["no_places"], "repository")
        changes["repositories"] = list(places | dict.fromkeys(given["places"]))
    if given["credentials"] or given["no_credentials"]:
        credentials = dict(trust["credentials"])
        _take(credentials, given["no_credentials"], "credential")
        changes["credentials"] = credentials | dict(given["credentials"])
    return changes


def _take(there: dict[str, Any], names: tuple[str, ...], what: str) -> None:
    for name in names:
        if name not in there:
            raise click.UsageError(f"there is no {what} {name!r}; there are: {', '.join(there) or 'none'}")
        del there[name]


def _read(path: str) -> str:
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise click.UsageError(f"the key file {path!r} cannot be read: {exc}") from exc


def describe(trust: Mapping[str, Any]) -> Iterator[str]:
    """It as lines for people."""
    own = "" if trust["policy"] else " (the fabric's own)"
    yield f"{'policy':<14}{trust['effective_policy']}{own}"
    yield from _lines("keys", [f"{key['name']}  sha256:{key['sha256']}" for key in trust["keys"]], "none of its own")
    yield from _lines("repositories", trust["repositories"], "any")
    named = [f"{registry}  {name}" for registry, name in trust["credentials"].items()]
    yield from _lines("credentials", named, "none of its own")


def _lines(label: str, lines: list[str], nothing: str) -> Iterator[str]:
    for place, line in enumerate(lines or [nothing]):
        yield f"{'' if place else label:<14}{plain(line)}"
