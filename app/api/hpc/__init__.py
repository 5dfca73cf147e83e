"""The hpc contract: what runs on which nodes and what it uses, told by reporters or measured by the fabric."""
