"""Use cases, one transaction each. They decide with the domain and write with storage; they know no HTTP and no Celery."""
