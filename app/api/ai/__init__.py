"""The ai contract: AI jobs by type and image, queues, clusters, and figures of the whole."""
