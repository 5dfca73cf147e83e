"""The one-machine stack: PostgreSQL, Valkey and every role under one supervisor, all data in one directory."""
