"""Paging by limit and offset, the same in every contract but for its maximum."""

from __future__ import annotations

from app.api.arguments import QuerySchema
from app.api.fields import QueryWhole

MAX_OFFSET = 2**53


class PageSchema(QuerySchema):
    """Where a page begins. Its subclasses add `limit` by `page_limit`."""

    offset = QueryWhole(0, MAX_OFFSET, load_default=0, metadata={"description": "Results to skip."})


def page_limit(default: int, most: int) -> QueryWhole:
    """How long a page is: 1 to `most`; beyond these is refused, never clipped."""
    return QueryWhole(1, most, load_default=default, metadata={"description": "Most results to return."})
