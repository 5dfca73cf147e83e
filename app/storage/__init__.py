"""Tables, units of work, and every SQL statement. Knows nothing of HTTP, Celery or processes."""
