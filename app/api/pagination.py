"""Paging by limit and offset, the same in every contract but for its maximum."""

from __future__ import annotations

from app.api.arguments import QuerySchema
from app.api.fields import QueryWhole

MAX_OFFSET = 2**53


def page_schema(default: int, most: int) -> type[QuerySchema]:
    """A query schema with `limit` (1 to `most`) and `offset`; beyond these is refused, never clipped."""

    class PageSchema(QuerySchema):
        """Parameters of a page."""

        limit = QueryWhole(1, most, load_default=default, metadata={"description": "Most results to return."})
        offset = QueryWhole(0, MAX_OFFSET, load_default=0, metadata={"description": "Results to skip."})

    return PageSchema
