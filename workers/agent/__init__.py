"""The node agent: claims what fits this host, hands it to a runner, reports what becomes of it, renews its leases."""
