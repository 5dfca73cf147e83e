"""Use cases, one transaction each: they decide with the domain and write with storage. No HTTP, no Celery."""
