"""Applies the table of limits to every request of an application, through flask-limiter.

A request is counted once its caller and its route are known (after 401, 404 and 405 of the path, 403), and before its
body is read: a refusal costs neither a parse nor a question to the database.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence
from typing import cast

from flask import Flask, Response, current_app, g, request
from flask_limiter import Limit, Limiter, RequestLimit

from app.api.auth import Principal
from app.api.contract import Contract
from app.api.errors import HttpRefusal
from app.api.limits.addresses import caller_address
from app.api.limits.counters import SharedCounters, window_end
from app.api.limits.failures import FailedLogins
from app.api.limits.marks import REST, UNLIMITED, group_of
from app.api.limits.measures import Measures
from app.api.limits.storage import SCHEME
from app.api.limits.table import Row, Table
from app.api.listener import primary_at
from config.settings import Settings


class RateLimited(HttpRefusal):
    """Rate limit exceeded"""

    status = 429


class Limits:
    """The limits of one application: which row a request falls under, and what its answer says about it."""

    def __init__(self, app: Flask, settings: Settings, contracts: Sequence[Contract]) -> None:
        self._app = app
        self.table = Table(settings.rate_limits)
        self.counters = SharedCounters(settings.broker_url)
        self.measures = Measures(self.counters)
        self.logins = FailedLogins(settings.failed_logins_per_minute)
        self._by_prefix = sorted(((c.at, c.name) for c in contracts), key=lambda item: -len(item[0]))
        self._by_blueprint = {b.name: c.name for c in contracts for b in (c.blueprint, *c.outside)}
        self._limiter = Limiter(
            _never_asked,
            default_limits=[
                Limit(self._rates, key_function=self._key, scope=self._scope, shared=True, on_breach=self._refuse)
            ],
            storage_uri=f"{SCHEME}://",
            storage_options={"counters": self.counters},  # type: ignore[dict-item]
            strategy="fixed-window",
            headers_enabled=False,
            request_identifier=self._scope,
        )

    def count(self) -> None:
        """Counts every request from here on: after whatever checks were installed before."""
        self._limiter.init_app(self._app)

    def contract(self) -> str:
        """The contract that the current request is for."""
        if request.blueprint in self._by_blueprint:
            return self._by_blueprint[request.blueprint]
        for prefix, name in self._by_prefix:
            if request.path == prefix or request.path.startswith(prefix + "/"):
                return name
        return dict(self._by_prefix).get(primary_at(), "")

    def group(self) -> str:
        """The group of the current request's view."""
        view = current_app.view_functions.get(request.endpoint or "")
        return REST if view is None else group_of(view)

    def row(self) -> Row | None:
        """The row of the table under which the current request falls."""
        if "limits_row" not in g:
            g.limits_row = self.table.row(self.contract(), self.group())
        return cast(Row | None, g.limits_row)

    def _rates(self) -> str:
        row = None if request.routing_exception else self.row()
        return ";".join(f"{rate.amount} per {rate.window_s} second" for rate in row.rates) if row else ""

    def _scope(self, _endpoint: str = "") -> str:
        row = self.row()
        return f"{row.contract}:{row.group}" if row else UNLIMITED

    def _key(self) -> str:
        row = cast(Row, self.row())
        caller: Principal | None = g.get("principal")
        if caller is None or row.key == "address":
            return f"address={caller_address(request)}"
        tenant = f"tenant={caller.tenant_id.hex}"
        if row.key == "subject":
            # A subject may have any characters; its digest cannot name another's key.
            return f"{tenant},subject={hashlib.sha256(caller.subject.encode('utf-8', 'replace')).hexdigest()[:32]}"
        if row.key == "endpoint":
            return f"{tenant},endpoint={(request.endpoint or 'none').rpartition('.')[2]}"
        return tenant

    def _refuse(self, breached: RequestLimit) -> Response | None:
        row = cast(Row, self.row())
        self.measures.refused(row.contract, row.group)
        ends_at = int(breached.window.reset_time)
        g.limits_headers = _headers(breached.limit.amount, 0, ends_at)
        wait_s = max(1, ends_at - int(time.time()))
        refusal = RateLimited(
            f"Rate limit exceeded: {breached.limit.amount} requests per {_duration(breached.limit.get_expiry())}; "
            f"try again in {wait_s} s.",
            limit=breached.limit.amount,
            window_seconds=breached.limit.get_expiry(),
            retry_after=wait_s,
        )
        refusal.headers = {"Retry-After": str(wait_s)}
        raise refusal

    def check_login(self) -> None:
        """Raises RateLimited for a login from an address with too many failed ones."""
        wait_s = 0 if self.group() == UNLIMITED else self.logins.must_wait(request)
        if not wait_s:
            return
        self.measures.refused(self.contract(), "failed-login")
        g.limits_headers = _headers(self.logins.most, 0, int(time.time()) + wait_s)
        refusal = RateLimited(f"Too many failed logins from this address; try again in {wait_s} s.", retry_after=wait_s)
        refusal.headers = {"Retry-After": str(wait_s)}
        raise refusal

    def learn_login(self, response: Response) -> Response:
        """Takes note of whether the login of the current request was good."""
        self.logins.learn(request, response.status_code == 401, "principal" in g)
        return response

    def show(self, response: Response) -> Response:
        """Adds what the current request's row says about its headers."""
        headers = g.get("limits_headers")
        if headers is None:
            headers = self._standing()
        response.headers.update(headers)
        return response

    def _standing(self) -> dict[str, str]:
        row = self.row() or (self.table.row(self.contract(), REST) if self.group() == UNLIMITED else None)
        if row is None or not row.headers:
            return {}
        counted = self._limiter.current_limit
        if counted is not None:
            return _headers(counted.limit.amount, counted.remaining, int(counted.window.reset_time))
        # Not counted, because its caller is unknown or it is never refused: what a first request would find.
        rate = row.rates[0]
        return _headers(rate.amount, rate.amount, window_end(int(time.time()), rate.window_s))


def install(app: Flask, settings: Settings, contracts: Iterable[Contract]) -> Limits:
    """Limits the requests of `app`. Call it before the auth is installed, and the result's `count` after.

    Raises SettingsError for a rule about a group that does not exist.
    """
    limits = Limits(app, settings, tuple(contracts))
    app.extensions["cfab_limits"] = limits
    app.before_request(limits.check_login)
    app.after_request(limits.learn_login)
    app.after_request(limits.show)
    return limits


def _headers(limit: int, remaining: int, reset_at: int) -> dict[str, str]:
    return {
        "X-RateLimit-Limit": str(limit),
        "X-RateLimit-Remaining": str(remaining),
        "X-RateLimit-Reset": str(reset_at),
    }


def _duration(window_s: int) -> str:
    return {1: "second", 60: "minute", 3600: "hour", 86_400: "day"}.get(window_s, f"{window_s} s")


def _never_asked() -> str:
    # flask-limiter wants a key for limits without one of their own; ours all have one.
    return ""
