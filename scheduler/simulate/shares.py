"""How much each tenant has used: live use and its decayed mean, by which claims and plans order tenants."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from app.domain.policy import Room, TenantView

_UNLIMITED = Room()


class Shares:
    """Use of every tenant. A mean over `half_life_s` beside what is held now; 0: only what is held now."""

    def __init__(self, tenants: Iterable[UUID], half_life_s: float) -> None:
        self._half_life_s = half_life_s
        self._live = dict.fromkeys(tenants, 0.0)
        self._average = dict.fromkeys(self._live, 0.0)
        self._at = dict.fromkeys(self._live, 0.0)

    def change(self, tenant: UUID, by: float, now: float) -> None:
        """The tenant holds so much more from now on."""
        self._settle(tenant, now)
        self._live[tenant] += by

    def _settle(self, tenant: UUID, now: float) -> None:
        passed = now - self._at[tenant]
        if passed > 0 and self._half_life_s:
            live = self._live[tenant]
            self._average[tenant] = live + (self._average[tenant] - live) * 2 ** (-passed / self._half_life_s)
        self._at[tenant] = now

    def view(self, tenant: UUID, now: float) -> TenantView:
        """The tenant as `choose` sees it; all weigh alike and have no quota."""
        self._settle(tenant, now)
        return TenantView(self._average[tenant] + self._live[tenant], 1.0, _UNLIMITED)

    def views(self, now: float) -> dict[UUID, TenantView]:
        """All of them."""
        return {tenant: self.view(tenant, now) for tenant in self._live}
