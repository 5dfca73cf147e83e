-- Arrays (one request for many jobs) and dependencies (jobs that start when others have ended).

-- A job of an array knows its index; `replaced_by` is the job that ran the index again. `waits`: 0 for nothing of its
-- own, 1 for jobs that it depends on, 2 for its turn in its array. `awaited`: others depend on it, so that its end must
-- be told; without one of these marks nothing below concerns a job.
ALTER TABLE job ADD COLUMN array_id uuid,
    ADD COLUMN array_index integer,
    ADD COLUMN replaced_by uuid,
    ADD COLUMN waits smallint NOT NULL DEFAULT 0 CONSTRAINT ck_job_waits CHECK (waits BETWEEN 0 AND 2
        AND (waits = 0 OR NOT ready)),
    ADD COLUMN awaited boolean NOT NULL DEFAULT false,
    ADD CONSTRAINT ck_job_array CHECK ((array_id IS NULL) = (array_index IS NULL));
-- One job for each index, whoever makes it and however often.
CREATE UNIQUE INDEX ix_job_array ON job (array_id, array_index) WHERE array_id IS NOT NULL AND replaced_by IS NULL;
CREATE INDEX ix_job_array_state ON job (array_id, state, array_index)
    WHERE array_id IS NOT NULL AND replaced_by IS NULL;
-- Those that may start or run, and those that wait for that.
CREATE INDEX ix_job_array_open ON job (array_id) WHERE array_id IS NOT NULL AND state < 4 AND waits = 0;
CREATE INDEX ix_job_array_turn ON job (array_id, array_index) WHERE state = 0 AND waits = 2;

-- `todo` are the indices that are to become jobs yet, `unmade` how many; `again` of these have a job that failed.
-- pending … cancelled count the jobs, as far as their changes were added up (array_delta holds the others); `skipped`
-- indices were cancelled before they became jobs. `template` is what insert_jobs takes, without an id.
CREATE TABLE job_array (
    id uuid CONSTRAINT pk_job_array PRIMARY KEY,
    tenant_id uuid NOT NULL CONSTRAINT fk_job_array_tenant REFERENCES tenant (id),
    key_id bigint NOT NULL CONSTRAINT fk_job_array_key REFERENCES scheduling_key (id),
    contract text NOT NULL,
    type text NOT NULL,
    class smallint NOT NULL,
    size integer NOT NULL CONSTRAINT ck_job_array_size CHECK (size > 0),
    max_parallel integer CONSTRAINT ck_job_array_parallel CHECK (max_parallel > 0),
    template jsonb NOT NULL,
    todo int4multirange NOT NULL,
    unmade integer NOT NULL CONSTRAINT ck_job_array_unmade CHECK (unmade >= 0),
    again integer NOT NULL DEFAULT 0 CONSTRAINT ck_job_array_again CHECK (again BETWEEN 0 AND unmade),
    skipped integer NOT NULL DEFAULT 0,
    pending integer NOT NULL DEFAULT 0,
    active integer NOT NULL DEFAULT 0,
    completed integer NOT NULL DEFAULT 0,
    failed integer NOT NULL DEFAULT 0,
    cancelled integer NOT NULL DEFAULT 0,
    waits boolean NOT NULL DEFAULT false,
    message text NOT NULL DEFAULT '',
    stop_by text,
    stop_reason text,
    created_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    CONSTRAINT ck_job_array_finished CHECK (finished_at IS NULL OR unmade = 0)
) WITH (fillfactor = 50);
CREATE INDEX ix_job_array_tenant ON job_array (tenant_id, id);
CREATE INDEX ix_job_array_finished ON job_array (finished_at) WHERE finished_at IS NOT NULL;

-- What changed in arrays since their rows were last written; also the list of arrays that need a look.
CREATE TABLE array_delta (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_array_delta PRIMARY KEY,
    array_id uuid NOT NULL,
    pending integer NOT NULL DEFAULT 0,
    active integer NOT NULL DEFAULT 0,
    completed integer NOT NULL DEFAULT 0,
    failed integer NOT NULL DEFAULT 0,
    cancelled integer NOT NULL DEFAULT 0
) WITH (autovacuum_vacuum_cost_delay = 0);
CREATE INDEX ix_array_delta_array ON array_delta (array_id);

-- Terms: 1 afterok, 2 afterany, 3 afternotok. `settled`: null while the parent goes on, true: satisfied, false: never.
-- Child and parent are jobs or arrays. A row stays as long as its child.
CREATE TABLE job_dependency (
    child_id uuid NOT NULL,
    parent_id uuid NOT NULL,
    terms smallint NOT NULL CONSTRAINT ck_job_dependency_terms CHECK (terms BETWEEN 1 AND 3),
    child_is_array boolean NOT NULL,
    parent_is_array boolean NOT NULL,
    settled boolean,
    CONSTRAINT pk_job_dependency PRIMARY KEY (child_id, parent_id)
);
CREATE INDEX ix_job_dependency_open ON job_dependency (parent_id, child_id) WHERE settled IS NULL;

-- Parents that have ended and whose dependents were not all told yet.
CREATE TABLE ended_parent (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_ended_parent PRIMARY KEY,
    parent_id uuid NOT NULL,
    is_array boolean NOT NULL,
    completed boolean NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Lets up to `turns` of an array's jobs start, those with the least indices first; how many it found. What others have
-- locked and what is on hold is left out. The keys are held as app/storage/keys.py wants it.
CREATE FUNCTION give_turns(the_array uuid, turns integer) RETURNS integer
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    ids uuid[];
    keys bigint[];
BEGIN
    ids := ARRAY(SELECT id FROM job WHERE array_id = the_array AND state = 0 AND waits = 2
        AND reason IS DISTINCT FROM 'hold' ORDER BY array_index LIMIT turns FOR NO KEY UPDATE SKIP LOCKED);
    IF cardinality(ids) = 0 THEN
        RETURN 0;
    END IF;
    keys := ARRAY(SELECT DISTINCT key_id FROM job WHERE id = ANY(ids) ORDER BY 1);
    PERFORM 1 FROM scheduling_key WHERE id = ANY(keys) ORDER BY id FOR KEY SHARE;
    WITH behind AS MATERIALIZED (
        SELECT k.id, h.head FROM scheduling_key k
        JOIN (SELECT key_id, min(queue_seq) AS head FROM job WHERE id = ANY(ids) GROUP BY 1) h ON h.key_id = k.id
        WHERE k.id = ANY(keys) AND (NOT k.live OR k.low_water > h.head) ORDER BY k.id FOR NO KEY UPDATE OF k)
    UPDATE scheduling_key k SET live = true, low_water = LEAST(k.low_water, b.head) FROM behind b WHERE k.id = b.id;
    UPDATE job SET waits = 0, ready = true, reason = 'new' WHERE id = ANY(ids);
    RETURN cardinality(ids);
END $$;

-- As in 0004, and besides: arrays count their jobs, an end passes its turn on in the same transaction, and the end of
-- a job that others wait for is told. For jobs without these marks that is two more columns in the first statement.
-- Plans are kept: one that was made for a few rows must not walk over thousands for each of thousands, as nested loops
-- over what changed would.
CREATE OR REPLACE FUNCTION job_changed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = public, pg_temp SET enable_hashjoin = on SET enable_nestloop = off AS $$
DECLARE
    wrong text;
    of_arrays boolean;
    awaited_ends boolean;
BEGIN
    SELECT min(format('job %s may not go from state %s to %s', o.id, o.state, n.state))
            FILTER (WHERE NOT job_may_follow(o.state, n.state)),
        bool_or(n.array_id IS NOT NULL), bool_or(n.awaited AND n.state > 3 AND o.state < 4)
        INTO wrong, of_arrays, awaited_ends FROM before o JOIN after n USING (id);
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION '%', wrong USING ERRCODE = 'check_violation';
    END IF;
    INSERT INTO job_count_delta (tenant_id, class, state, type, phase, percent, n)
        SELECT tenant_id, class, state, type, phase, percent, sum(n) FROM (
            SELECT tenant_id, class, state, type, job_phase(state, ready, reason, stop_cause) AS phase,
                job_percent(priority) AS percent, -1 AS n FROM before
            UNION ALL
            SELECT tenant_id, class, state, type, job_phase(state, ready, reason, stop_cause), job_percent(priority), 1
            FROM after
        ) moved GROUP BY 1, 2, 3, 4, 5, 6 HAVING sum(n) <> 0;
    INSERT INTO event (tenant_id, job_id, attempt, was, state, ready, reason, stop_cause, node_id)
        SELECT n.tenant_id, n.id, n.attempt, o.state, n.state, n.ready, n.reason, n.stop_cause, n.node_id
        FROM before o JOIN after n USING (id)
        WHERE (o.state, o.ready, o.reason, o.stop_cause) IS DISTINCT FROM (n.state, n.ready, n.reason, n.stop_cause);

    -- Arrays and dependencies.
    IF awaited_ends THEN
        INSERT INTO ended_parent (parent_id, is_array, completed)
            SELECT n.id, false, n.state = 4 FROM before o JOIN after n USING (id)
            WHERE n.awaited AND n.state > 3 AND o.state < 4 ORDER BY n.id;
    END IF;
    IF of_arrays THEN
        -- A change of what only waits for its turn says nothing new, but its array may need a look: it may be off hold.
        INSERT INTO array_delta (array_id, pending, active, completed, failed, cancelled)
            SELECT n.array_id,
                count(*) FILTER (WHERE n.replaced_by IS NULL AND n.state = 0)
                    - count(*) FILTER (WHERE o.replaced_by IS NULL AND o.state = 0),
                count(*) FILTER (WHERE n.replaced_by IS NULL AND n.state IN (1, 2, 3))
                    - count(*) FILTER (WHERE o.replaced_by IS NULL AND o.state IN (1, 2, 3)),
                count(*) FILTER (WHERE n.replaced_by IS NULL AND n.state = 4)
                    - count(*) FILTER (WHERE o.replaced_by IS NULL AND o.state = 4),
                count(*) FILTER (WHERE n.replaced_by IS NULL AND n.state = 5)
                    - count(*) FILTER (WHERE o.replaced_by IS NULL AND o.state = 5),
                count(*) FILTER (WHERE n.replaced_by IS NULL AND n.state = 6)
                    - count(*) FILTER (WHERE o.replaced_by IS NULL AND o.state = 6)
            FROM before o JOIN after n USING (id)
            WHERE n.array_id IS NOT NULL AND (o.replaced_by IS DISTINCT FROM n.replaced_by
                OR (o.state <> n.state AND NOT (o.state IN (1, 2, 3) AND n.state IN (1, 2, 3)))
                OR (n.waits = 2 AND o.reason IS DISTINCT FROM n.reason))
            GROUP BY n.array_id;
        PERFORM give_turns(array_id, turns) FROM (
            SELECT n.array_id, count(*)::integer AS turns FROM before o JOIN after n USING (id)
            WHERE n.array_id IS NOT NULL AND o.waits = 0 AND o.state < 4 AND n.state > 3
            GROUP BY n.array_id ORDER BY n.array_id) freed;
    END IF;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION job_removed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO job_count_delta (tenant_id, class, state, type, phase, percent, n)
        SELECT tenant_id, class, state, type, job_phase(state, ready, reason, stop_cause), job_percent(priority),
            -count(*)
        FROM removed GROUP BY 1, 2, 3, 4, 5, 6;
    DELETE FROM job_dependency WHERE child_id IN (SELECT id FROM removed);
    RETURN NULL;
END $$;
