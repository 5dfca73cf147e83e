"""Alembic migrations, numbered. See README.md here for the rule of expand, then contract."""
