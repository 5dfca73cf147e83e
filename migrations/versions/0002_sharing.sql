-- == Events and counts ==============================================================================================

-- An event's place in the feed is (xid, id). The transaction's own number alone would tell the events of one job in the
-- wrong order: a transaction that began early may wait for one that began late. So the place is the greater of its own
-- number and the last one that had ended when the event was written: never below its own number, so that what is below
-- the oldest open transaction is complete; never below that of any event which the writer could have waited for.
ALTER TABLE event ALTER COLUMN xid SET DEFAULT GREATEST(pg_current_xact_id(),
    ((pg_snapshot_xmax(pg_current_snapshot())::text::bigint - 1)::text)::xid8);
ALTER TABLE event ADD COLUMN was smallint;
-- A reader looks at no partition two days before its cursor's. This makes that safe: who wrote nothing for a day may
-- not write into the past any more.
ALTER TABLE event ADD CONSTRAINT ck_event_fresh CHECK (at AT TIME ZONE 'UTC' < day + 2) NOT VALID;
CREATE INDEX ix_event_place ON event (xid, id);
CREATE INDEX ix_event_tenant ON event (tenant_id, xid, id);

-- The last place that retention took away: a cursor before it has missed something.
CREATE TABLE event_floor (
    id smallint NOT NULL DEFAULT 1 CONSTRAINT pk_event_floor PRIMARY KEY CONSTRAINT ck_event_floor_one CHECK (id = 1),
    xid xid8 NOT NULL,
    event_id bigint NOT NULL
);

-- As in 0001, and besides: the event says what the job was before, and a change of class or type is counted too.
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
    INSERT INTO job_count_delta (tenant_id, class, state, type, n)
        SELECT tenant_id, class, state, type, sum(n) FROM (
            SELECT o.tenant_id, o.class, o.state, o.type, -1 AS n FROM before o JOIN after a USING (id)
                WHERE (o.tenant_id, o.class, o.state, o.type) IS DISTINCT FROM (a.tenant_id, a.class, a.state, a.type)
            UNION ALL
            SELECT a.tenant_id, a.class, a.state, a.type, 1 FROM before o JOIN after a USING (id)
                WHERE (o.tenant_id, o.class, o.state, o.type) IS DISTINCT FROM (a.tenant_id, a.class, a.state, a.type)
        ) moved GROUP BY 1, 2, 3, 4;
    INSERT INTO event (tenant_id, job_id, attempt, was, state, ready, reason, stop_cause, node_id)
        SELECT n.tenant_id, n.id, n.attempt, o.state, n.state, n.ready, n.reason, n.stop_cause, n.node_id
        FROM before o JOIN after n USING (id)
        WHERE (o.state, o.ready, o.reason, o.stop_cause) IS DISTINCT FROM (n.state, n.ready, n.reason, n.stop_cause);
    RETURN NULL;
END $$;

-- Types are the users' words, so that job_count may grow with the jobs. What is read all the time is summed up without
-- them, by a trigger: whoever folds, also an older program, keeps both.
CREATE TABLE job_total (
    tenant_id uuid NOT NULL,
    class smallint NOT NULL,
    state smallint NOT NULL,
    n bigint NOT NULL,
    CONSTRAINT pk_job_total PRIMARY KEY (tenant_id, class, state)
);
CREATE FUNCTION job_count_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO job_total AS t (tenant_id, class, state, n)
            SELECT tenant_id, class, state, sum(n) FROM after GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
            ON CONFLICT (tenant_id, class, state) DO UPDATE SET n = t.n + EXCLUDED.n;
    ELSIF TG_OP = 'UPDATE' THEN
        UPDATE job_total t SET n = t.n + c.n
            FROM (SELECT a.tenant_id, a.class, a.state, sum(a.n - b.n) AS n
                FROM after a JOIN before b USING (tenant_id, class, state, type) GROUP BY 1, 2, 3 ORDER BY 1, 2, 3) c
            WHERE (t.tenant_id, t.class, t.state) = (c.tenant_id, c.class, c.state) AND c.n <> 0;
    ELSE
        UPDATE job_total t SET n = t.n - c.n
            FROM (SELECT tenant_id, class, state, sum(n) AS n FROM before GROUP BY 1, 2, 3 ORDER BY 1, 2, 3) c
            WHERE (t.tenant_id, t.class, t.state) = (c.tenant_id, c.class, c.state);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER job_count_added AFTER INSERT ON job_count REFERENCING NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION job_count_changed();
CREATE TRIGGER job_count_changed AFTER UPDATE ON job_count REFERENCING OLD TABLE AS before NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION job_count_changed();
CREATE TRIGGER job_count_removed AFTER DELETE ON job_count REFERENCING OLD TABLE AS before
    FOR EACH STATEMENT EXECUTE FUNCTION job_count_changed();
INSERT INTO job_total (tenant_id, class, state, n) SELECT tenant_id, class, state, sum(n) FROM job_count GROUP BY 1, 2, 3;

-- == End of events and counts =======================================================================================

-- == Samples ========================================================================================================

-- Beside peak_memory_bytes: the most CPUs an attempt used at a time, and the most memory of its GPUs; null: unknown.
ALTER TABLE attempt ADD COLUMN peak_cpu_cores double precision;
ALTER TABLE attempt ADD COLUMN peak_gpu_memory_bytes bigint;

-- == End of samples =================================================================================================
