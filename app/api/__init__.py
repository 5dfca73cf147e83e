"""The HTTP side: a hub (auth, errors, strict JSON, paging, idempotency) and one spoke per contract.

A spoke parses, calls services and renders. It holds no rule of its own and never speaks SQL.
"""
