-- What readers of several contracts ask for: phases and priorities of jobs with exact totals of both, configurations,
-- statistics by minute and the rate by second.

-- The phases of app/domain/phase.py, and the scale from 0 to 100 of app/domain/priority.py.
CREATE FUNCTION job_phase(state smallint, ready boolean, reason text, stop_cause smallint) RETURNS smallint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT (CASE state
        WHEN 0 THEN CASE WHEN reason = 'preempted' THEN 2 WHEN ready THEN 0 ELSE 1 END
        WHEN 1 THEN 3
        WHEN 2 THEN 4
        WHEN 3 THEN CASE WHEN stop_cause = 4 THEN 5 ELSE 6 END
        ELSE state + 3 END)::smallint
$$;
CREATE FUNCTION job_percent(priority integer) RETURNS smallint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT (CASE
        WHEN priority >= 1000 THEN 70 + (LEAST(priority, 5000) - 1000) * 30 / 4000
        WHEN priority >= 500 THEN 30 + (priority - 500) * 39 / 499
        ELSE priority * 29 / 499 END)::smallint
$$;

-- Nothing may change between the recount below and its triggers.
LOCK TABLE job IN SHARE ROW EXCLUSIVE MODE;
ALTER TABLE job ADD COLUMN priority integer NOT NULL DEFAULT 500
    CONSTRAINT ck_job_priority CHECK (priority BETWEEN 0 AND 5000);
ALTER TABLE job_spec ADD COLUMN config jsonb;
ALTER TABLE job DISABLE TRIGGER job_changed;
UPDATE job SET priority = LEAST(5000, GREATEST(0, k.priority)) FROM scheduling_key k WHERE k.id = job.key_id;
ALTER TABLE job ENABLE TRIGGER job_changed;

-- Counts by state alone cannot tell a job that waits for room from one that waits for its backoff.
TRUNCATE job_count_delta, job_count, job_total;
ALTER TABLE job_count_delta ADD COLUMN phase smallint NOT NULL, ADD COLUMN percent smallint NOT NULL;
ALTER TABLE job_count ADD COLUMN phase smallint NOT NULL, ADD COLUMN percent smallint NOT NULL,
    DROP CONSTRAINT pk_job_count,
    ADD CONSTRAINT pk_job_count PRIMARY KEY (tenant_id, class, state, type, phase, percent);
ALTER TABLE job_total ADD COLUMN phase smallint NOT NULL, ADD COLUMN percent smallint NOT NULL,
    DROP CONSTRAINT pk_job_total,
    ADD CONSTRAINT pk_job_total PRIMARY KEY (tenant_id, class, state, phase, percent);

CREATE OR REPLACE FUNCTION job_count_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO job_total AS t (tenant_id, class, state, phase, percent, n)
            SELECT tenant_id, class, state, phase, percent, sum(n) FROM after GROUP BY 1, 2, 3, 4, 5
            ORDER BY 1, 2, 3, 4, 5
            ON CONFLICT (tenant_id, class, state, phase, percent) DO UPDATE SET n = t.n + EXCLUDED.n;
    ELSIF TG_OP = 'UPDATE' THEN
        UPDATE job_total t SET n = t.n + c.n
            FROM (SELECT a.tenant_id, a.class, a.state, a.phase, a.percent, sum(a.n - b.n) AS n
                FROM after a JOIN before b USING (tenant_id, class, state, type, phase, percent)
                GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5) c
            WHERE (t.tenant_id, t.class, t.state, t.phase, t.percent)
                = (c.tenant_id, c.class, c.state, c.phase, c.percent) AND c.n <> 0;
    ELSE
        UPDATE job_total t SET n = t.n - c.n
            FROM (SELECT tenant_id, class, state, phase, percent, sum(n) AS n FROM before
                GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5) c
            WHERE (t.tenant_id, t.class, t.state, t.phase, t.percent)
                = (c.tenant_id, c.class, c.state, c.phase, c.percent);
    END IF;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION job_added() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO job_count_delta (tenant_id, class, state, type, phase, percent, n)
        SELECT tenant_id, class, state, type, job_phase(state, ready, reason, stop_cause), job_percent(priority), count(*)
        FROM added GROUP BY 1, 2, 3, 4, 5, 6;
    INSERT INTO event (tenant_id, job_id, attempt, state, ready, reason, stop_cause, node_id)
        SELECT tenant_id, id, attempt, state, ready, reason, stop_cause, node_id FROM added;
    RETURN NULL;
END $$;

-- As in 0002, but what is counted is told by phase and priority too; changes that cancel each other are not told.
CREATE OR REPLACE FUNCTION job_changed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = public, pg_temp AS $$
DECLARE
    wrong text;
BEGIN
    SELECT format('job %s may not go from state %s to %s', o.id, o.state, n.state) INTO wrong
        FROM before o JOIN after n USING (id) WHERE NOT job_may_follow(o.state, n.state) LIMIT 1;
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
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION job_removed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO job_count_delta (tenant_id, class, state, type, phase, percent, n)
        SELECT tenant_id, class, state, type, job_phase(state, ready, reason, stop_cause), job_percent(priority),
            -count(*)
        FROM removed GROUP BY 1, 2, 3, 4, 5, 6;
    RETURN NULL;
END $$;

INSERT INTO job_count (tenant_id, class, state, type, phase, percent, n)
    SELECT tenant_id, class, state, type, job_phase(state, ready, reason, stop_cause), job_percent(priority), count(*)
    FROM job GROUP BY 1, 2, 3, 4, 5, 6;

-- Kinds: 0 submitted, 1 dispatched (from submit to first start), 2 completed, 3 failed, 4 cancelled (from start to end).
-- Buckets of durations grow by a constant factor; app/domain/histogram.py explains them.
CREATE TABLE job_statistic (
    minute timestamptz NOT NULL,
    class smallint NOT NULL,
    kind smallint NOT NULL CONSTRAINT ck_job_statistic_kind CHECK (kind BETWEEN 0 AND 4),
    bucket smallint NOT NULL,
    n bigint NOT NULL,
    total_s double precision NOT NULL,
    CONSTRAINT pk_job_statistic PRIMARY KEY (minute, class, kind, bucket)
);
CREATE TABLE job_rate (
    second timestamptz CONSTRAINT pk_job_rate PRIMARY KEY,
    n bigint NOT NULL
);
