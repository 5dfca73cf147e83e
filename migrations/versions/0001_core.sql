CREATE SEQUENCE job_queue_seq;

CREATE TABLE tenant (
    id uuid CONSTRAINT pk_tenant PRIMARY KEY,
    name text NOT NULL CONSTRAINT uq_tenant_name UNIQUE,
    email text,
    organization text,
    tier text NOT NULL DEFAULT 'medium' CONSTRAINT ck_tenant_tier CHECK (tier IN ('low', 'medium', 'high', 'critical')),
    weight double precision NOT NULL DEFAULT 1 CONSTRAINT ck_tenant_weight CHECK (weight > 0),
    quota_jobs bigint,
    quota_cpus_milli bigint,
    quota_memory_bytes bigint,
    quota_gpus bigint,
    quota_gpu_memory_bytes bigint,
    allow_preemption boolean NOT NULL DEFAULT true,
    can_preempt_others boolean NOT NULL DEFAULT false,
    active boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO tenant (id, name, tier) VALUES ('00000000-0000-0000-0000-000000000001', 'default', 'critical');

CREATE TABLE node (
    id text CONSTRAINT pk_node PRIMARY KEY,
    kind text NOT NULL CONSTRAINT ck_node_kind CHECK (kind IN ('agent', 'external')),
    incarnation uuid NOT NULL,
    host text NOT NULL DEFAULT '',
    protocol integer NOT NULL,
    state text NOT NULL DEFAULT 'ready' CONSTRAINT ck_node_state CHECK (state IN ('ready', 'draining', 'offline')),
    capabilities text[] NOT NULL DEFAULT '{}',
    slots integer NOT NULL CONSTRAINT ck_node_slots CHECK (slots >= 0),
    cpus_milli bigint NOT NULL CONSTRAINT ck_node_cpus CHECK (cpus_milli >= 0),
    memory_bytes bigint NOT NULL CONSTRAINT ck_node_memory CHECK (memory_bytes >= 0),
    gpus jsonb NOT NULL DEFAULT '[]',
    ip text,
    cluster text NOT NULL DEFAULT 'default',
    labels jsonb NOT NULL DEFAULT '{}',
    version text NOT NULL DEFAULT '',
    registered_at timestamptz NOT NULL DEFAULT now(),
    last_seen_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

CREATE TABLE scheduling_key (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_scheduling_key PRIMARY KEY,
    tenant_id uuid NOT NULL CONSTRAINT fk_scheduling_key_tenant REFERENCES tenant (id),
    class smallint NOT NULL CONSTRAINT ck_scheduling_key_class CHECK (class BETWEEN 0 AND 2),
    priority integer NOT NULL,
    runner text NOT NULL,
    external_ok boolean NOT NULL,
    cpus_milli bigint NOT NULL,
    memory_bytes bigint NOT NULL,
    gpus integer NOT NULL,
    gpu_memory_bytes bigint NOT NULL,
    gpu_model text NOT NULL,
    live boolean NOT NULL DEFAULT true,
    low_water bigint NOT NULL DEFAULT 0,
    CONSTRAINT uq_scheduling_key_shape UNIQUE (tenant_id, class, priority, runner, external_ok, cpus_milli,
        memory_bytes, gpus, gpu_memory_bytes, gpu_model)
) WITH (fillfactor = 70);
CREATE INDEX ix_scheduling_key_live ON scheduling_key (class, tenant_id, priority DESC, low_water) WHERE live;

CREATE TABLE job (
    id uuid CONSTRAINT pk_job PRIMARY KEY,
    tenant_id uuid NOT NULL CONSTRAINT fk_job_tenant REFERENCES tenant (id),
    key_id bigint NOT NULL CONSTRAINT fk_job_key REFERENCES scheduling_key (id),
    class smallint NOT NULL,
    contract text NOT NULL,
    type text NOT NULL,
    state smallint NOT NULL DEFAULT 0 CONSTRAINT ck_job_state CHECK (state BETWEEN 0 AND 6),
    ready boolean NOT NULL DEFAULT true,
    reason text,
    message text NOT NULL DEFAULT '',
    queue_seq bigint NOT NULL DEFAULT nextval('job_queue_seq'),
    attempt integer NOT NULL DEFAULT 0,
    attempt_id uuid,
    node_id text,
    stop_cause smallint CONSTRAINT ck_job_stop_cause CHECK (stop_cause BETWEEN 1 AND 4),
    stop_by text,
    stop_reason text,
    not_before timestamptz,
    failures integer NOT NULL DEFAULT 0,
    lost_nodes text[] NOT NULL DEFAULT '{}',
    exit_code integer,
    signal integer,
    created_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    finished_at timestamptz,
    CONSTRAINT ck_job_pending CHECK (state <> 0 OR (attempt_id IS NULL AND reason IS NOT NULL AND stop_cause IS NULL
        AND finished_at IS NULL)),
    CONSTRAINT ck_job_ready CHECK (NOT ready OR (state = 0 AND not_before IS NULL)),
    CONSTRAINT ck_job_active CHECK (state NOT IN (1, 2, 3) OR (attempt_id IS NOT NULL AND node_id IS NOT NULL
        AND attempt > 0 AND finished_at IS NULL)),
    CONSTRAINT ck_job_running CHECK (state <> 2 OR started_at IS NOT NULL),
    CONSTRAINT ck_job_stopping CHECK ((state = 3) = (stop_cause IS NOT NULL) OR state > 3),
    CONSTRAINT ck_job_terminal CHECK (state < 4 OR (finished_at IS NOT NULL AND attempt_id IS NULL))
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX ix_job_claim ON job (key_id, queue_seq) WHERE state = 0 AND ready;
CREATE INDEX ix_job_due ON job (not_before) WHERE state = 0 AND NOT ready AND not_before IS NOT NULL;
CREATE INDEX ix_job_tenant ON job (tenant_id, id);
CREATE INDEX ix_job_active ON job (tenant_id, state, id) WHERE state IN (1, 2, 3);
CREATE INDEX ix_job_ended ON job (tenant_id, state, id) WHERE state > 3;

CREATE TABLE job_spec (
    job_id uuid CONSTRAINT pk_job_spec PRIMARY KEY CONSTRAINT fk_job_spec_job REFERENCES job (id) ON DELETE CASCADE,
    runner text NOT NULL,
    binary_url text,
    binary_sha256 text CONSTRAINT ck_job_spec_sha256 CHECK (binary_sha256 ~ '^[0-9a-f]{64}$'),
    image text,
    script text,
    command jsonb NOT NULL DEFAULT '[]',
    arguments jsonb NOT NULL DEFAULT '[]',
    environment jsonb NOT NULL DEFAULT '{}',
    hard_limits boolean NOT NULL DEFAULT false,
    cpus_milli bigint NOT NULL,
    memory_bytes bigint NOT NULL,
    time_limit_s double precision,
    grace_s double precision NOT NULL,
    max_retries integer NOT NULL DEFAULT 0,
    backoff_s double precision NOT NULL DEFAULT 1,
    backoff_multiplier double precision NOT NULL DEFAULT 2,
    asked jsonb NOT NULL DEFAULT '{}'
);

CREATE TABLE attempt (
    id uuid CONSTRAINT pk_attempt PRIMARY KEY,
    job_id uuid NOT NULL CONSTRAINT fk_attempt_job REFERENCES job (id) ON DELETE CASCADE,
    number integer NOT NULL,
    node_id text NOT NULL,
    node_ip text,
    token uuid NOT NULL,
    log_day date NOT NULL,
    gpu_uuids text[] NOT NULL DEFAULT '{}',
    claimed_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    ended_at timestamptz,
    outcome text,
    exit_code integer,
    signal integer,
    oom boolean NOT NULL DEFAULT false,
    limit_hit text,
    reason text,
    stopped_by text,
    peak_memory_bytes bigint,
    cpu_seconds double precision,
    output_bytes bigint NOT NULL DEFAULT 0,
    truncated_bytes bigint NOT NULL DEFAULT 0,
    log_gap boolean NOT NULL DEFAULT false,
    CONSTRAINT uq_attempt_number UNIQUE (job_id, number),
    CONSTRAINT ck_attempt_ended CHECK ((outcome IS NULL) = (ended_at IS NULL))
) WITH (fillfactor = 70);

CREATE TABLE allocation (
    attempt_id uuid NOT NULL CONSTRAINT fk_allocation_attempt REFERENCES attempt (id) ON DELETE CASCADE,
    member smallint NOT NULL DEFAULT 0,
    tenant_id uuid NOT NULL,
    node_id text NOT NULL,
    cpus_milli bigint NOT NULL,
    memory_bytes bigint NOT NULL,
    gpus integer NOT NULL,
    gpu_memory_bytes bigint NOT NULL,
    gpu_uuids text[] NOT NULL DEFAULT '{}',
    token uuid NOT NULL,
    CONSTRAINT pk_allocation PRIMARY KEY (attempt_id, member)
);
CREATE INDEX ix_allocation_node ON allocation (node_id);

CREATE TABLE gpu_hold (
    gpu_uuid text CONSTRAINT pk_gpu_hold PRIMARY KEY,
    node_id text NOT NULL,
    attempt_id uuid NOT NULL,
    member smallint NOT NULL DEFAULT 0,
    CONSTRAINT fk_gpu_hold_allocation FOREIGN KEY (attempt_id, member) REFERENCES allocation (attempt_id, member)
        ON DELETE CASCADE
);
CREATE INDEX ix_gpu_hold_allocation ON gpu_hold (attempt_id, member);
CREATE INDEX ix_gpu_hold_node ON gpu_hold (node_id);

CREATE TABLE lease (
    attempt_id uuid NOT NULL,
    member smallint NOT NULL DEFAULT 0,
    node_id text NOT NULL,
    token uuid NOT NULL,
    expires_at timestamptz NOT NULL,
    CONSTRAINT pk_lease PRIMARY KEY (attempt_id, member),
    CONSTRAINT fk_lease_allocation FOREIGN KEY (attempt_id, member) REFERENCES allocation (attempt_id, member)
        ON DELETE CASCADE
) WITH (fillfactor = 50, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX ix_lease_node ON lease (node_id);

CREATE TABLE usage (
    tenant_id uuid NOT NULL,
    node_id text NOT NULL,
    jobs bigint NOT NULL DEFAULT 0 CONSTRAINT ck_usage_jobs CHECK (jobs >= 0),
    cpus_milli bigint NOT NULL DEFAULT 0 CONSTRAINT ck_usage_cpus CHECK (cpus_milli >= 0),
    memory_bytes bigint NOT NULL DEFAULT 0 CONSTRAINT ck_usage_memory CHECK (memory_bytes >= 0),
    gpus bigint NOT NULL DEFAULT 0 CONSTRAINT ck_usage_gpus CHECK (gpus >= 0),
    gpu_memory_bytes bigint NOT NULL DEFAULT 0 CONSTRAINT ck_usage_gpu_memory CHECK (gpu_memory_bytes >= 0),
    completed bigint NOT NULL DEFAULT 0,
    CONSTRAINT pk_usage PRIMARY KEY (tenant_id, node_id)
) WITH (fillfactor = 50, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX ix_usage_node ON usage (node_id);

CREATE TABLE idempotency (
    tenant_id uuid NOT NULL,
    method text NOT NULL,
    path text NOT NULL,
    key text NOT NULL,
    body_sha256 bytea NOT NULL,
    status integer NOT NULL,
    answer jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pk_idempotency PRIMARY KEY (tenant_id, method, path, key)
);
CREATE INDEX ix_idempotency_created ON idempotency (created_at);

CREATE TABLE task_run (
    name text CONSTRAINT pk_task_run PRIMARY KEY,
    last_run_at timestamptz NOT NULL,
    duration_s double precision NOT NULL,
    detail jsonb NOT NULL DEFAULT '{}'
);

CREATE TABLE job_count (
    tenant_id uuid NOT NULL,
    class smallint NOT NULL,
    state smallint NOT NULL,
    type text NOT NULL,
    n bigint NOT NULL,
    CONSTRAINT pk_job_count PRIMARY KEY (tenant_id, class, state, type)
);

CREATE TABLE job_count_delta (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_job_count_delta PRIMARY KEY,
    tenant_id uuid NOT NULL,
    class smallint NOT NULL,
    state smallint NOT NULL,
    type text NOT NULL,
    n bigint NOT NULL
) WITH (autovacuum_vacuum_cost_delay = 0);

CREATE TABLE log_chunk (
    log_day date NOT NULL,
    attempt_id uuid NOT NULL,
    member smallint NOT NULL DEFAULT 0,
    position bigint NOT NULL,
    length integer NOT NULL,
    codec smallint NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    data bytea NOT NULL,
    CONSTRAINT pk_log_chunk PRIMARY KEY (log_day, attempt_id, member, position)
) PARTITION BY RANGE (log_day);
CREATE TABLE log_chunk_default PARTITION OF log_chunk DEFAULT;

CREATE TABLE sample (
    day date NOT NULL,
    attempt_id uuid NOT NULL,
    member smallint NOT NULL DEFAULT 0,
    at timestamptz NOT NULL,
    cpu_cores double precision,
    memory_bytes bigint,
    gpu_percent double precision,
    gpu_memory_bytes bigint,
    CONSTRAINT pk_sample PRIMARY KEY (day, attempt_id, member, at)
) PARTITION BY RANGE (day);
CREATE TABLE sample_default PARTITION OF sample DEFAULT;

CREATE TABLE event (
    id bigint GENERATED ALWAYS AS IDENTITY,
    day date NOT NULL DEFAULT CURRENT_DATE,
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    tenant_id uuid NOT NULL,
    job_id uuid NOT NULL,
    attempt integer NOT NULL,
    state smallint NOT NULL,
    ready boolean NOT NULL,
    reason text,
    stop_cause smallint,
    node_id text,
    CONSTRAINT pk_event PRIMARY KEY (day, id)
) PARTITION BY RANGE (day);
CREATE TABLE event_default PARTITION OF event DEFAULT;
CREATE INDEX ix_event_job ON event (job_id, id);

-- Makes the daily partitions of all three tables from yesterday to `ahead` days on; safe to repeat. A day of which the
-- default partition holds rows already (nobody made partitions for long) stays there.
CREATE FUNCTION make_day_partitions(ahead integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    parent text;
    day date;
    taken boolean;
    made integer := 0;
BEGIN
    FOREACH parent IN ARRAY ARRAY['log_chunk', 'sample', 'event'] LOOP
        FOR day IN SELECT generate_series(CURRENT_DATE - 1, CURRENT_DATE + ahead, '1 day')::date LOOP
            IF to_regclass(format('%s_%s', parent, to_char(day, 'YYYYMMDD'))) IS NULL THEN
                EXECUTE format('SELECT EXISTS (SELECT 1 FROM %I WHERE %I = %L)', parent || '_default',
                    CASE parent WHEN 'log_chunk' THEN 'log_day' ELSE 'day' END, day) INTO taken;
                CONTINUE WHEN taken;
                EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES FROM (%L) TO (%L)',
                    format('%s_%s', parent, to_char(day, 'YYYYMMDD')), parent, day, day + 1);
                made := made + 1;
            END IF;
        END LOOP;
    END LOOP;
    RETURN made;
END $$;
SELECT make_day_partitions(14);

-- The state table of app/domain/states.py.
CREATE FUNCTION job_may_follow(before smallint, after smallint) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT before = after OR CASE before
        WHEN 0 THEN after IN (1, 2, 5, 6)
        WHEN 1 THEN after IN (0, 2, 3, 4, 5, 6)
        WHEN 2 THEN after IN (0, 3, 4, 5, 6)
        WHEN 3 THEN after IN (0, 4, 5, 6)
        ELSE false END
$$;

-- Every state change is counted and told as an event here, so that no path can forget it.
CREATE FUNCTION job_added() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO job_count_delta (tenant_id, class, state, type, n)
        SELECT tenant_id, class, state, type, count(*) FROM added GROUP BY 1, 2, 3, 4;
    INSERT INTO event (tenant_id, job_id, attempt, state, ready, reason, stop_cause, node_id)
        SELECT tenant_id, id, attempt, state, ready, reason, stop_cause, node_id FROM added;
    RETURN NULL;
END $$;
CREATE TRIGGER job_added AFTER INSERT ON job REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION job_added();

CREATE FUNCTION job_changed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    wrong text;
BEGIN
    SELECT format('job %s may not go from state %s to %s', o.id, o.state, n.state) INTO wrong
        FROM before o JOIN after n USING (id) WHERE NOT job_may_follow(o.state, n.state) LIMIT 1;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION '%', wrong USING ERRCODE = 'check_violation';
    END IF;
    INSERT INTO job_count_delta (tenant_id, class, state, type, n)
        SELECT tenant_id, class, state, type, sum(n) FROM (
            SELECT o.tenant_id, o.class, o.state, o.type, -1 AS n FROM before o JOIN after a USING (id) WHERE o.state <> a.state
            UNION ALL
            SELECT a.tenant_id, a.class, a.state, a.type, 1 FROM before o JOIN after a USING (id) WHERE o.state <> a.state
        ) moved GROUP BY 1, 2, 3, 4;
    INSERT INTO event (tenant_id, job_id, attempt, state, ready, reason, stop_cause, node_id)
        SELECT n.tenant_id, n.id, n.attempt, n.state, n.ready, n.reason, n.stop_cause, n.node_id
        FROM before o JOIN after n USING (id)
        WHERE (o.state, o.ready, o.reason, o.stop_cause) IS DISTINCT FROM (n.state, n.ready, n.reason, n.stop_cause);
    RETURN NULL;
END $$;
CREATE TRIGGER job_changed AFTER UPDATE ON job REFERENCING OLD TABLE AS before NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION job_changed();

CREATE FUNCTION job_removed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO job_count_delta (tenant_id, class, state, type, n)
        SELECT tenant_id, class, state, type, -count(*) FROM removed GROUP BY 1, 2, 3, 4;
    RETURN NULL;
END $$;
CREATE TRIGGER job_removed AFTER DELETE ON job REFERENCING OLD TABLE AS removed
    FOR EACH STATEMENT EXECUTE FUNCTION job_removed();
