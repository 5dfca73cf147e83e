"""Every setting of every role, read once from `CFAB_…` variables, typed and validated.

A setting NAME is read from `CFAB_NAME`, or from the file named by `CFAB_NAME_FILE` (for secrets). No other module
may read the environment. `docs/settings.md` lists all of them, and a test holds the two together.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from config.rates import LimitRule, parse_rules


class SettingsError(ValueError):
    """A setting has a value that cannot be used; the message names it and says what is allowed."""


def _flag(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in {"1", "true", "yes", "on"}:
        return True
    if lowered in {"0", "false", "no", "off", ""}:
        return False
    raise ValueError("use 1 or 0")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


_ALGORITHMS = (
    ("RS256", "RS384", "RS512"), ("PS256", "PS384", "PS512"), ("ES256", "ES384", "ES512"), ("EdDSA",)
)  # fmt: skip


def _one_family(text: str) -> tuple[str, ...]:
    words = _words(text)
    if not words or not any(set(words) <= set(family) for family in _ALGORITHMS):
        families = "; ".join(", ".join(family) for family in _ALGORITHMS)
        raise ValueError(f"use algorithms of one of these families: {families}")
    return words


def _path_or_url(text: str) -> str:
    if "://" not in text:
        return text
    parts = urlsplit(text)
    if not parts.hostname or "@" in parts.netloc:
        raise ValueError("use a file, or an https address without a password")
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_this_machine(parts.hostname)):
        raise ValueError("use a file, or an https address (http on this machine only)")
    return text


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _one_of(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"use one of {', '.join(allowed)}")
        return text

    return parse


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError as exc:
        raise ValueError("must be a whole number") from exc


def _positive_int(text: str) -> int:
    value = _whole(text)
    if value <= 0:
        raise ValueError("must be greater than 0")
    return value


def _count(text: str) -> int:
    value = _whole(text)
    if value < 0:
        raise ValueError("must be 0 or more")
    return value


def _port(text: str) -> int:
    value = _whole(text)
    if not 0 <= value <= 65_535:
        raise ValueError("must be a port, or 0 for none")
    return value


def _ports(text: str) -> str:
    first, _, last = text.partition("-")
    if not 1024 <= _port(first) <= _port(last or first):
        raise ValueError("use two ports from 1024 to 65535, such as 29500-29999")
    return f"{int(first)}-{int(last or first)}"


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError as exc:
        raise ValueError("must be a number of seconds") from exc
    if not 0 < value < 10_000_000:
        raise ValueError("must be a number of seconds greater than 0")
    return value


def _duration(text: str) -> float:
    return 0.0 if text.strip() in {"0", "0.0"} else _seconds(text)


def _setting(default: Any, parse: Callable[[str], Any], doc: str, secret: bool = False) -> Any:
    return field(default=default, repr=not secret, metadata={"parse": parse, "doc": doc, "secret": secret})


def _image_policy(text: str) -> str:
    # What was called so before a tenant could have a policy of its own.
    return "signed" if text == "required" else _one_of("off", "digest", "signed")(text)


def _registries(text: str) -> tuple[str, ...]:
    found = _words(text)
    for one in found:
        if not re.fullmatch(r"(http://)?([A-Za-z0-9._-]+|\[[0-9A-Fa-f:]+\])(:[0-9]{1,5})?", one):
            raise ValueError("use host or host:port, with http:// before it for a registry without TLS")
    return found


def _unix_socket(text: str) -> str:
    if not text.startswith("unix:///"):
        raise ValueError("must be unix:// and the absolute path of a socket, such as unix:///var/run/docker.sock")
    return text


_OF_JOBS = frozenset(
    {"CFAB_CONFIG", "CFAB_PREEMPTIBLE", "CFAB_CHECKPOINT", "CFAB_ARRAY_ID", "CFAB_ARRAY_INDEX", "CFAB_ARRAY_COUNT"}
)
"""Variables that jobs have: a program that reads settings may be run by one."""


@dataclass(frozen=True)
class Settings:
    """All settings with their defaults; `load_settings` fills them from the environment."""

    # Servers.
    database_url: str = _setting("", str, "PostgreSQL (15 or newer) of API, scheduler, migrations.", secret=True)
    agent_database_url: str = _setting(
        "", str, "The node agents' own restricted login; empty: database_url.", secret=True
    )
    broker_url: str = _setting(
        "", str, "Redis or Valkey for Celery's bells; empty: no bells, polling only.", secret=True
    )
    database_pool: int = _setting(16, _positive_int, "Connections an API process holds at most.")
    statement_timeout_s: float = _setting(30.0, _seconds, "PostgreSQL ends any statement that takes longer.")

    # API.
    api_host: str = _setting("127.0.0.1", str, "Address the API binds to.")
    api_port: int = _setting(8080, _positive_int, "Port of the API; its primary contract is jobs.")
    ai_port: int = _setting(8000, _port, "Port where the ai contract is the primary one; 0: none.")
    gpu_port: int = _setting(8081, _port, "Port where the gpu contract is the primary one; 0: none.")
    api_threads: int = _setting(64, _positive_int, "Threads of an API process that serve requests.")
    api_streams: int = _setting(
        512, _positive_int, "Logs and events that an API process streams at a time; each takes a thread of its own."
    )
    api_token: str = _setting("", str, "The bearer token that the API accepts.", secret=True)
    auth: str = _setting(
        "required", _one_of("required", "off"), "off serves without tokens, on a loopback address only."
    )
    metrics_open: bool = _setting(False, _flag, "Serve Prometheus text without a token.")
    max_body_bytes: int = _setting(16 * 2**20, _positive_int, "Largest request body.")
    image_signatures: str = _setting(
        "off",
        _image_policy,
        "What container images must have where a tenant's own policy does not say: off, digest (in their name) or"
        " signed (by a trusted key). The same on API servers and workers.",
    )
    image_keys: str = _setting(
        "", str, "Public keys (PEM, P-256, one after another) whose signatures on images count for all tenants."
    )
    registry_hosts: tuple[str, ...] = _setting(
        (),
        _registries,
        "Registries inside your network that signatures may be asked of: host or host:port, with http:// for one"
        " without TLS; public ones need no mention.",
    )
    registry_ca: str = _setting("", str, "File of certificates (PEM) that registries are trusted by besides the usual.")
    registry_credentials_dir: str = _setting(
        "",
        str,
        "Directory of tenants' registry credentials on API servers and workers: TENANT/NAME.json, as docker login"
        " writes it; empty: none.",
    )
    rate_limits: tuple[LimitRule, ...] = _setting(
        (), parse_rules, "Limits besides the documented ones: jobs:submit=100/second+5000/hour by subject, ai:*=off."
    )
    failed_logins_per_minute: int = _setting(
        600, _count, "Bad tokens an address may send a minute before it has to wait; 0: any number."
    )
    trusted_proxies: int = _setting(
        0, _count, "Proxies in front that set X-Forwarded-For; 0: the header is not believed."
    )

    # Signed tokens.
    auth_keys: str = _setting(
        "", _path_or_url, "JWKS of the issuer of signed tokens: a file or an https address; empty: no signed tokens."
    )
    auth_issuer: str = _setting("", str, "The issuer (iss) whose tokens are accepted.")
    auth_audience: tuple[str, ...] = _setting(("cfab",), _words, "Audiences (aud), one of which a token must be for.")
    auth_algorithms: tuple[str, ...] = _setting(
        ("RS256",), _one_family, "Algorithms of signed tokens, all of one family: RS…, PS…, ES… or EdDSA."
    )
    auth_tenant_claim: str = _setting("tenant", str, "Claim with the tenant's name or id; may be a path (a.b.c).")
    auth_roles_claim: str = _setting("roles", str, "Claim with the roles; may be a path, such as realm_access.roles.")
    auth_role_prefix: str = _setting("", str, "What role words meant for the fabric begin with, such as fabric-.")
    auth_token_types: tuple[str, ...] = _setting(
        (), _words, "Accepted words of a token's header typ, such as at+jwt; empty: JWT, at+jwt or none."
    )
    auth_token_max_bytes: int = _setting(8000, _positive_int, "Longest token; servers refuse headers beyond 8190.")
    auth_leeway_s: float = _setting(10.0, _seconds, "How far the issuer's clock may be off.")
    auth_keys_refresh_s: float = _setting(300.0, _seconds, "How often the issuer's keys are fetched again.")
    auth_keys_interval_s: float = _setting(10.0, _seconds, "Least time between two fetches, for whatever reason.")
    auth_keys_max_age_s: float = _setting(
        86_400.0, _seconds, "How long keys are trusted while the issuer cannot be asked."
    )

    # Command line.
    server_url: str = _setting("http://127.0.0.1:8080", str, "The fabric that `cfab submit`, `ps`, `logs`, … talk to.")

    # Scheduling.
    lease_s: float = _setting(60.0, _seconds, "How long an allocation is held without a renewal.")
    renew_s: float = _setting(5.0, _seconds, "How often an agent renews its leases.")
    external_lease_s: float = _setting(120.0, _seconds, "Lease of an executor that claims through the jobs contract.")
    fence_margin_s: float = _setting(5.0, _seconds, "A keeper kills this long before the lease may pass to another.")
    poll_s: float = _setting(5.0, _seconds, "An agent asks for work at least this often (with jitter), bells or not.")
    pack_delay_s: float = _setting(
        1.0,
        _duration,
        "How long a node leaves a GPU job to a node that it fills better, so that hosts stay whole; 0: no.",
    )
    retry_elsewhere_s: float = _setting(
        5.0, _duration, "How long a node leaves a job that failed there to others that could run it; 0: no."
    )
    tick_s: float = _setting(1.0, _seconds, "How often the scheduler promotes, reaps and sweeps.")
    plan_s: float = _setting(1.0, _seconds, "How often the scheduler plans jobs of several members and reservations.")
    reserve_after_s: float = _setting(
        30.0, _duration, "A job that has waited this long and fits no free node gets a reservation."
    )
    max_reservations: int = _setting(4, _count, "Jobs for which capacity is reserved at a time; 0: none.")
    starvation_s: float = _setting(
        3600.0, _duration, "A job of any class that has waited this long is planned as foreground; 0: never."
    )
    min_runtime_s: float = _setting(60.0, _duration, "A job that has run less than this is never preempted.")
    gang_barrier_s: float = _setting(
        120.0, _seconds, "How long the members of a job wait for each other before they start."
    )
    fair_share_half_life_s: float = _setting(
        86_400.0,
        _duration,
        "After this time what a tenant used counts half for its fair share; 0: only what it uses now.",
    )
    default_cpus_milli: int = _setting(
        100, _positive_int, "Thousandths of a CPU reserved for a job that asks for nothing."
    )
    default_memory_mib: int = _setting(64, _positive_int, "MiB reserved for a job that asks for nothing.")
    default_grace_s: float = _setting(10.0, _seconds, "Seconds between SIGTERM and SIGKILL.")
    array_max: int = _setting(1_000_000, _positive_int, "Jobs that one array may have at most.")
    array_window: int = _setting(
        4000, _positive_int, "Jobs of an array that are made ahead of those that run; the others follow as these end."
    )
    live_keys_per_tenant: int = _setting(1000, _positive_int, "Different pending shapes a tenant may have at a time.")
    unrunnable: str = _setting(
        "explain",
        _one_of("explain", "refuse"),
        "Jobs that no registered node could ever run: explain: they wait and say so; refuse: refused at submit.",
    )
    retain_days: int = _setting(14, _positive_int, "Days that logs, samples and events are kept.")
    retain_keys_hours: int = _setting(72, _positive_int, "Hours that an idempotency key gives its first answer.")
    retain_jobs_days: int = _setting(90, _positive_int, "Days that finished jobs are kept.")
    retain_nodes_days: int = _setting(30, _positive_int, "Days that a node is kept of which nothing is heard.")

    # Worker.
    node_name: str = _setting("", str, "Name of this node; empty: the host's name.")
    data_dir: Path = _setting(
        Path("~/.local/share/cfab"), Path, "Data of the one-machine stack; by default of root: /var/lib/cfab-stack."
    )
    work_dir: Path = _setting(Path("/var/lib/cfab"), Path, "Where a worker keeps cache, spools and work directories.")
    slots: int = _setting(0, _count, "Jobs a node runs at a time at most; 0: ten per CPU.")
    cpus_milli: int = _setting(0, _count, "Thousandths of a CPU a node offers; 0: all it has.")
    memory_mib: int = _setting(0, _count, "MiB a node offers; 0: nine tenths of what it has.")
    gpus: str = _setting("", str, "Indices or UUIDs of the GPUs a node offers, or none; empty: all.")
    simulate_gpus: str = _setting("", str, "GPUs to pretend, such as 4xA100-80GB,2xT4-16GB.")
    simulate_gpu_faults: str = _setting(
        "", str, "File that makes pretended GPUs err, for tests: lines such as 0 lost, 1 memory 4096."
    )
    gpu_poll_s: float = _setting(5.0, _seconds, "How often an agent looks at its GPUs.")
    gpu_stranger_mib: int = _setting(
        1024, _count, "MiB of an idle GPU's memory that somebody else may use before it is taken out; 0: any."
    )
    node_address: str = _setting(
        "", str, "Address at which other hosts reach this node; empty: that by which it reaches the database."
    )
    gang_ports: str = _setting(
        "29500-29999", _ports, "Ports at which the members of a gang meet, on the node of its member 0."
    )
    container_gangs: str = _setting(
        "off",
        _one_of("off", "host"),
        "Whether this node takes members of gangs in containers: host gives them, and them alone, its own network.",
    )
    gpu_sharing: str = _setting(
        "off", _one_of("off", "memory"), "memory: jobs that ask for a slice share this node's GPUs; off: one job each."
    )
    gpu_overuse: str = _setting(
        "note", _one_of("note", "kill"), "What happens to a job that uses more GPU memory than its slice has."
    )
    cluster: str = _setting("default", str, "Cluster that a node belongs to.")
    node_labels: str = _setting("", str, "Labels of a node, such as zone=a,disk=nvme.")
    sandbox: str = _setting("preferred", _one_of("required", "preferred", "off"), "Whether jobs run under bubblewrap.")
    job_network: str = _setting("host", _one_of("host", "none"), "Network of a sandboxed job.")
    job_uid_base: int = _setting(200_000, _positive_int, "First numeric uid of jobs when the worker is root.")
    container_runtime: str = _setting(
        "auto",
        _one_of("auto", "off", "required"),
        "Whether a node runs containers: auto if a Docker Engine answers when the worker starts.",
    )
    docker_host: str = _setting(
        "unix:///var/run/docker.sock", _unix_socket, "The Docker Engine's socket on this node: unix:// and its path."
    )
    container_network: str = _setting(
        "bridge", _one_of("bridge", "none"), "Network of containers: bridge leads outside, none is none at all."
    )
    container_pull: str = _setting(
        "always",
        _one_of("always", "missing", "never"),
        "always looks each tag up at its registry, missing takes what the node has, never pulls.",
    )
    registry_auth: str = _setting(
        "", str, "File with credentials of image registries, as docker login writes it (config.json); empty: none."
    )
    container_images_max_bytes: int = _setting(
        100 * 2**30, _positive_int, "Size of the images a node keeps of those it pulled; others are left alone."
    )
    drain_on_stop: bool = _setting(False, _flag, "SIGTERM drains a worker; otherwise it detaches and jobs go on.")
    drain_limit_s: float = _setting(300.0, _seconds, "How long a drain waits for running jobs before it stops them.")
    fetch_schemes: tuple[str, ...] = _setting(("https", "http"), _words, "URL schemes a worker downloads from.")
    fetch_hosts: tuple[str, ...] = _setting(
        (), _words, "Hosts a worker downloads from (*.example.com); empty: any public one."
    )
    fetch_allow_loopback: bool = _setting(False, _flag, "Allow downloads from loopback addresses (one machine only).")
    fetch_allow_private: bool = _setting(False, _flag, "Allow downloads from private address ranges.")
    fetch_max_bytes: int = _setting(8 * 2**30, _positive_int, "Largest download.")
    fetch_timeout_s: float = _setting(600.0, _seconds, "Longest download.")
    cache_max_bytes: int = _setting(20 * 2**30, _positive_int, "Size of a node's cache of verified binaries.")
    log_cap_bytes: int = _setting(
        64 * 2**20, _positive_int, "Output kept of one attempt; the rest is counted and dropped."
    )
    log_flush_s: float = _setting(0.1, _seconds, "How often an agent ships new output.")
    sample_s: float = _setting(5.0, _seconds, "How often an agent samples its jobs' use of resources.")

    faults: str = _setting("", str, "Database faults on purpose, for tests only: claim:after:0.05,finish:before:0.02.")

    # Logging.
    log_level: str = _setting("info", _one_of("debug", "info", "warning", "error"), "How much a role says.")
    log_format: str = _setting("text", _one_of("text", "json"), "How a role says it.")

    @property
    def node(self) -> str:
        """Name of this node: as set, or the host's."""
        return self.node_name or socket.gethostname()

    @property
    def gang_port_range(self) -> range:
        """The ports at which gangs meet."""
        first, last = self.gang_ports.split("-")
        return range(int(first), int(last) + 1)

    @property
    def data(self) -> Path:
        """Absolute path of the one-machine stack's data."""
        default = Settings.__dataclass_fields__["data_dir"].default
        if os.geteuid() == 0 and self.data_dir == default:
            # Root's home is closed to the users that the database and the jobs run as.
            return Path("/var/lib/cfab-stack")
        return self.data_dir.expanduser().absolute()

    @property
    def agent_url(self) -> str:
        """Database login of a node agent."""
        return self.agent_database_url or self.database_url


def load_settings(environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Settings from `environ` (default: the process environment); `overrides` win.

    Raises SettingsError with the variable's name for a value that cannot be used, for a `_FILE` that cannot be read,
    and for an unknown `CFAB_…` variable, which is nearly always a misspelling.
    """
    source = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    known = {"CFAB_" + f.name.upper(): f for f in fields(Settings)}
    for variable, setting in known.items():
        text = _read(source, variable)
        if text is None:
            continue
        try:
            values[setting.name] = setting.metadata["parse"](text)
        except ValueError as exc:
            raise SettingsError(f"{variable}={text!r} cannot be used: {exc}") from exc
    for variable in source:
        plain = variable.removesuffix("_FILE")
        theirs = plain.startswith(("CFAB_TEST_", "CFAB_JOB_", "CFAB_ATTEMPT")) or variable in _OF_JOBS
        if variable.startswith("CFAB_") and plain not in known and not theirs:
            near = get_close_matches(plain, known, n=1)
            meant = f"; did you mean {near[0]}?" if near else ";"
            raise SettingsError(f"{variable} is not a setting{meant} `docs/settings.md` lists them all")
    settings = Settings(**{**values, **overrides})
    if settings.renew_s * 2 + settings.fence_margin_s >= settings.lease_s:
        raise SettingsError("CFAB_LEASE_S must exceed twice CFAB_RENEW_S plus CFAB_FENCE_MARGIN_S")
    if settings.auth_keys and not (settings.auth_issuer and settings.auth_audience):
        raise SettingsError("CFAB_AUTH_KEYS needs CFAB_AUTH_ISSUER and CFAB_AUTH_AUDIENCE: whose tokens, and for whom")
    return settings


def child_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """This process's environment for a child, with `changes`: a CFAB_X there also replaces CFAB_X_FILE, and back."""
    names = {name.removesuffix("_FILE") for name in changes if name.startswith("CFAB_")}
    kept = {name: value for name, value in os.environ.items() if name.removesuffix("_FILE") not in names}
    return {**kept, **changes}


def _read(source: Mapping[str, str], variable: str) -> str | None:
    path = source.get(variable + "_FILE")
    if path is None:
        return source.get(variable)
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError as exc:
        raise SettingsError(f"{variable}_FILE={path!r} cannot be read: {exc.strerror}") from exc
