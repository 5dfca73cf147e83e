"""The gpu contract: jobs by GPUs, tenants with quotas, and the state of the cluster."""
