"""Rate limits: one table of who may ask how often, counted in Redis for all API processes, locally while it is away.

A view says its group with `limited("submit")`; `table.py` has the rates, `check.py` applies them to each request.
"""

from app.api.limits.addresses import trust_proxies
from app.api.limits.check import RateLimited, install
from app.api.limits.marks import UNLIMITED, limited

__all__ = ["UNLIMITED", "RateLimited", "install", "limited", "trust_proxies"]
