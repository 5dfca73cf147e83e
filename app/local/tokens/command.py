"""`cfab token` with its commands: print the machine's token, sign one for a tenant, change the keys."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ParamSpec

import click

from app.cli.client import Client, token_of
from app.cli.failure import ExitCode, Failure
from app.cli.options import Duration
from app.local.data import DataDirectory
from app.local.failure import StackError
from app.local.tokens.keys import StackKeys
from app.local.tokens.signing import Grant, SigningKey
from config.settings import Settings, SettingsError, load_settings

P = ParamSpec("P")
ROLES = ("user", "executor", "operator", "admin")
LONGEST_S = 366 * 86_400.0
PATIENCE_S = 3.0

_DATA = click.option("--data", type=click.Path(path_type=Path), help="Data of the stack; default: CFAB_DATA_DIR.")
_KEY = click.option("--key", type=click.Path(path_type=Path), help="A private key (PEM) instead of the stack's.")


def _explained(run: Callable[P, None]) -> Callable[P, None]:
    """A command that says in one line what it could not do."""

    @functools.wraps(run)
    def command(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            run(*args, **kwargs)
        except (StackError, SettingsError) as exc:
            _fail(str(exc), exc)
        except OSError as exc:
            _fail(f"{exc.filename}: {exc.strerror}", exc)

    return command


@click.group("token", invoke_without_command=True)
@_DATA
@click.pass_context
@_explained
def command(context: click.Context, data: Path | None) -> None:
    """Print the token that `cfab up` made at its first start; its commands sign tokens for others."""
    context.obj = data
    if context.invoked_subcommand is not None:
        return
    settings = load_settings()
    root = _root(settings, data)
    given = settings.api_token if data is None else ""
    try:
        click.echo(given or DataDirectory(root).token_file.read_text(encoding="ascii").strip())
    except FileNotFoundError as exc:
        raise StackError(f"there is no token in {root}; run `cfab up` first, or name its data with --data") from exc
    except OSError as exc:
        raise StackError(f"the token in {root} cannot be read: {exc.strerror}") from exc


@command.command("create")
@click.option("--tenant", required=True, help="Name or id of the tenant whose jobs it opens.")
@click.option("--role", "roles", type=click.Choice(ROLES), multiple=True, required=True, help="May be repeated.")
@click.option("--ttl", "ttl_s", type=Duration(), default="12h", show_default=True, help="How long it is valid.")
@click.option("--subject", help="Whose it is, for records; default: the tenant's name.")
@_DATA
@_KEY
@click.option("--json", "as_json", is_flag=True, help="Print JSON with the token, its end and its key.")
@click.pass_context
@_explained
def create(
    context: click.Context,
    tenant: str,
    roles: tuple[str, ...],
    ttl_s: float,
    subject: str | None,
    data: Path | None,
    key: Path | None,
    as_json: bool,
) -> None:
    """Sign a token for a tenant; standard output has the token alone.

    The tenant must exist: the API refuses the token until it does. With --key, an API must be told to trust the key:
    `cfab token keys --key FILE` prints what CFAB_AUTH_KEYS is to name.
    """
    settings = load_settings()
    _check_words(tenant, subject, ttl_s)
    signer = _signer(settings, _root(settings, data or context.obj), key)
    grant = Grant(tenant, list(dict.fromkeys(roles)), subject or tenant, ttl_s)
    made = signer.sign(settings, grant)
    ends = datetime.fromtimestamp(made.expires_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if as_json:
        told = {"token": made.token, "tenant": tenant, "roles": grant.roles, "subject": grant.subject,
                "expires_at": ends, "key_id": made.key_id}  # fmt: skip
        click.echo(json.dumps(told))
        return
    click.echo(made.token)
    click.echo(f"valid until {ends}{_unless(_is_there(settings, data or context.obj, tenant), tenant)}", err=True)


def _unless(there: bool | None, tenant: str) -> str:
    """What a token waits for besides."""
    if there is None:
        return f", if there is a tenant {tenant!r}"
    return "" if there else f", once there is a tenant {tenant!r}: `cfab tenant create` makes it"


def _is_there(settings: Settings, data: Path | None, tenant: str) -> bool | None:
    """Whether the fabric that these settings name has the tenant; None where it cannot be asked now."""
    try:
        token = token_of(replace(settings, data_dir=_root(settings, data)), settings.server_url)
        Client(settings.server_url, token, PATIENCE_S).tenant(tenant)
    except Failure as failure:
        return False if failure.code is ExitCode.NOT_FOUND else None
    return True


@command.command("rotate")
@_DATA
@click.option("--keep", "keep_s", type=Duration(), help="Trust the older keys for this long, such as 24h.")
@click.option("--retire", is_flag=True, help="Make no new key; trust only the present one from now on.")
@click.pass_context
@_explained
def rotate(context: click.Context, data: Path | None, keep_s: float | None, retire: bool) -> None:
    """Make a new signing key; the older ones stay trusted until they are retired.

    A running API follows at once. A leaked key is gone after `cfab token rotate` and `cfab token rotate --retire`,
    with all the tokens that it has signed.
    """
    if retire and keep_s is not None:
        raise StackError("--retire and --keep exclude each other; give one of them")
    settings = load_settings()
    keys = StackKeys(_root(settings, data or context.obj))
    if retire:
        gone = keys.retire()
        click.echo(f"{_older(gone)} {'is' if gone == 1 else 'are'} no longer trusted")
        return
    key, older = keys.rotate(keep_s)
    until = "until `cfab token rotate --retire`" if keep_s is None else f"for {keep_s:g} s"
    click.echo(f"signing with {key.id}; {_older(older)} {'stays' if older == 1 else 'stay'} trusted {until}")


def _older(count: int) -> str:
    return f"{count} older {'key' if count == 1 else 'keys'}"


@command.command("keys")
@_DATA
@_KEY
@click.pass_context
@_explained
def keys(context: click.Context, data: Path | None, key: Path | None) -> None:
    """Print the public keys as a JWKS, which may be shown to anyone."""
    root = _root(load_settings(), data or context.obj)
    shown: dict[str, Any] = StackKeys(root).public() if key is None else {"keys": [_read(key).public]}
    click.echo(json.dumps(shown, indent=1))


def _root(settings: Settings, data: Path | None) -> Path:
    return data.expanduser().absolute() if data is not None else settings.data


def _signer(settings: Settings, root: Path, key: Path | None) -> SigningKey:
    if key is not None:
        signer = _read(key)
        if settings.auth_keys and signer.algorithm not in settings.auth_algorithms:
            allowed = ", ".join(settings.auth_algorithms)
            raise StackError(f"{key} signs with {signer.algorithm}, but CFAB_AUTH_ALGORITHMS allows {allowed} only")
        return signer
    if settings.auth_keys:
        raise StackError(
            f"the fabric trusts the keys of CFAB_AUTH_KEYS={settings.auth_keys}, not this machine's; ask their issuer "
            "for a token, or name its private key with --key"
        )
    return StackKeys(root).signing_key()


def _read(key: Path) -> SigningKey:
    return SigningKey.read(key.read_bytes(), str(key))


def _check_words(tenant: str, subject: str | None, ttl_s: float) -> None:
    for option, word in (("--tenant", tenant), ("--subject", subject or tenant)):
        if not 0 < len(word) <= 255 or not word.isprintable():
            raise StackError(f"{option} {word[:40]!r} cannot be used; give 1 to 255 printable characters")
    if ttl_s > LONGEST_S:
        raise StackError(f"--ttl is longer than {LONGEST_S / 86_400:g} days; give a shorter one")


def _fail(message: str, exc: Exception) -> None:
    click.echo(f"cfab token: {message}", err=True)
    raise click.exceptions.Exit(ExitCode.USAGE) from exc
