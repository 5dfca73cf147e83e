-- A job that some other system runs, told by its own reports. It is no row of `job`, so that nothing can claim, queue
-- or charge it. `id` is a UUID of the fabric, of the same kind as a job's; `client_id` is what its reporter calls it.
CREATE TABLE tracked_job (
    id uuid CONSTRAINT pk_tracked_job PRIMARY KEY,
    tenant_id uuid NOT NULL CONSTRAINT fk_tracked_job_tenant REFERENCES tenant (id),
    client_id text NOT NULL,
    owner text NOT NULL,
    nodes text[] NOT NULL CONSTRAINT ck_tracked_job_nodes CHECK (cardinality(nodes) > 0),
    state smallint NOT NULL DEFAULT 2 CONSTRAINT ck_tracked_job_state CHECK (state IN (0, 2, 4, 5, 6)),
    created_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    heard_at timestamptz NOT NULL DEFAULT now(),
    cpu_percent double precision NOT NULL DEFAULT 0,
    memory_mib bigint NOT NULL DEFAULT 0,
    gpu_percent double precision,
    CONSTRAINT uq_tracked_job_client UNIQUE (tenant_id, client_id),
    CONSTRAINT ck_tracked_job_ended CHECK ((state > 3) = (ended_at IS NOT NULL))
) WITH (fillfactor = 70);
CREATE INDEX ix_tracked_job_tenant ON tracked_job (tenant_id, id);
CREATE INDEX ix_tracked_job_state ON tracked_job (tenant_id, state, id);
CREATE INDEX ix_tracked_job_owner ON tracked_job (tenant_id, owner, id);
CREATE INDEX ix_tracked_job_running ON tracked_job (id) WHERE state = 2;
CREATE INDEX ix_tracked_job_nodes ON tracked_job USING gin (nodes);

CREATE TABLE tracked_sample (
    job_id uuid NOT NULL CONSTRAINT fk_tracked_sample_job REFERENCES tracked_job (id) ON DELETE CASCADE,
    at timestamptz NOT NULL,
    id bigint GENERATED ALWAYS AS IDENTITY,
    cpu_percent double precision NOT NULL,
    memory_mib bigint NOT NULL,
    gpu_percent double precision,
    CONSTRAINT pk_tracked_sample PRIMARY KEY (job_id, at, id)
);
CREATE INDEX ix_tracked_sample_at ON tracked_sample USING brin (at);

-- Jobs of the fabric that were deleted from the observed view, and there alone. `state` is what is counted: the job's
-- own once it is final, the one it was hidden in until then.
CREATE TABLE observed_hidden (
    job_id uuid CONSTRAINT pk_observed_hidden PRIMARY KEY CONSTRAINT fk_observed_hidden_job REFERENCES job (id)
        ON DELETE CASCADE,
    tenant_id uuid NOT NULL,
    state smallint NOT NULL
);
CREATE INDEX ix_observed_hidden_open ON observed_hidden (tenant_id, job_id) WHERE state <= 3;

-- Exact totals without counting rows. Kinds: tracked (by state and owner), hidden (final ones, by state), created
-- (tracked jobs ever made), gone (jobs of the fabric that retention took away).
CREATE TABLE observed_count (
    tenant_id uuid NOT NULL,
    kind text NOT NULL,
    state smallint NOT NULL,
    owner text NOT NULL,
    n bigint NOT NULL,
    CONSTRAINT pk_observed_count PRIMARY KEY (tenant_id, kind, state, owner)
);
CREATE TABLE observed_count_delta (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_observed_count_delta PRIMARY KEY,
    tenant_id uuid NOT NULL,
    kind text NOT NULL,
    state smallint NOT NULL,
    owner text NOT NULL,
    n bigint NOT NULL
) WITH (autovacuum_vacuum_cost_delay = 0);

CREATE FUNCTION tracked_counted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        INSERT INTO observed_count_delta (tenant_id, kind, state, owner, n)
            VALUES (OLD.tenant_id, 'tracked', OLD.state, OLD.owner, -1);
    END IF;
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO observed_count_delta (tenant_id, kind, state, owner, n)
            VALUES (NEW.tenant_id, 'tracked', NEW.state, NEW.owner, 1);
    END IF;
    IF TG_OP = 'INSERT' THEN
        INSERT INTO observed_count_delta (tenant_id, kind, state, owner, n) VALUES (NEW.tenant_id, 'created', 0, '', 1);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER tracked_counted AFTER INSERT OR DELETE ON tracked_job FOR EACH ROW EXECUTE FUNCTION tracked_counted();
CREATE TRIGGER tracked_moved AFTER UPDATE OF state ON tracked_job FOR EACH ROW WHEN (OLD.state <> NEW.state)
    EXECUTE FUNCTION tracked_counted();

CREATE FUNCTION hidden_counted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'INSERT' AND OLD.state > 3 THEN
        INSERT INTO observed_count_delta (tenant_id, kind, state, owner, n)
            VALUES (OLD.tenant_id, 'hidden', OLD.state, '', -1);
    END IF;
    IF TG_OP <> 'DELETE' AND NEW.state > 3 THEN
        INSERT INTO observed_count_delta (tenant_id, kind, state, owner, n)
            VALUES (NEW.tenant_id, 'hidden', NEW.state, '', 1);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER hidden_counted AFTER INSERT OR UPDATE OR DELETE ON observed_hidden FOR EACH ROW
    EXECUTE FUNCTION hidden_counted();

CREATE FUNCTION job_gone() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO observed_count_delta (tenant_id, kind, state, owner, n)
        SELECT tenant_id, 'gone', 0, '', count(*) FROM removed GROUP BY 1;
    RETURN NULL;
END $$;
CREATE TRIGGER job_gone AFTER DELETE ON job REFERENCING OLD TABLE AS removed
    FOR EACH STATEMENT EXECUTE FUNCTION job_gone();

-- Which jobs ran on a node.
CREATE INDEX ix_attempt_node ON attempt (node_id, job_id);
