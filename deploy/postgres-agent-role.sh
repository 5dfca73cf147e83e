#!/bin/sh
# Run once by PostgreSQL's image when it makes its data: the agents' restricted login. `cfab migrate` grants it what
# it needs.
set -eu
psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
  -v password="$CFAB_AGENT_PASSWORD" <<'SQL'
CREATE ROLE cfab_agent LOGIN PASSWORD :'password';
SQL
