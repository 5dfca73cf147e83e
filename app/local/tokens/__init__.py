"""`cfab token`: the machine's own token, signed tokens for others, and the keys that they are signed with."""
