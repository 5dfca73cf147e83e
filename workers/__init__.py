"""Making it happen on a host: the node agent, its keeper, its runners and what they need."""
