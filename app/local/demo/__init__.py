"""The demo: a whole fabric in a temporary directory, real programs run on it, every outcome checked.

It speaks to the fabric as any client does, over HTTP, and starts it as any user does, with `cfab up`.
"""
