"""Settings, Celery configuration and logging: the only package that reads the environment."""
