"""What followers of the gpu contract may ask for."""

from __future__ import annotations

from app.api.arguments import QuerySchema
from app.api.fields import Text

_AFTER = "The id of the last message; 0: all that is kept; now: only what comes. `Last-Event-ID` goes before it."


class JobFollowed(QuerySchema):
    """From where to follow one job."""

    after = Text(most=100, load_default="0", metadata={"description": _AFTER})


class JobsFollowed(QuerySchema):
    """Whose jobs to follow, and from where."""

    after = Text(most=100, load_default="now", metadata={"description": _AFTER})
    tenant_id = Text(most=100, metadata={"description": "Operators: another tenant's id or name."})
