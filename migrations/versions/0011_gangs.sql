-- Members of gangs start and end by themselves; their job moves on with the last. app/services/gangs.py decides, on rows
-- that it reads once their job is locked.

-- Starting jobs become running under the fence; the attempts that were still current.
CREATE OR REPLACE FUNCTION start_attempts(starts json) RETURNS SETOF uuid
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off
    SET enable_mergejoin = off AS $$
BEGIN
    RETURN QUERY WITH locked AS MATERIALIZED (
        SELECT j.id, j.state, t.attempt_id, t.started_at
        FROM json_to_recordset(starts) AS t (attempt_id uuid, token uuid, started_at timestamptz)
        JOIN attempt a ON a.id = t.attempt_id AND a.token = t.token AND a.outcome IS NULL
        JOIN job j ON j.id = a.job_id AND j.attempt_id = COALESCE(a.leader_id, a.id)
        ORDER BY j.id FOR NO KEY UPDATE OF j
    ), moved AS (
        UPDATE job j SET state = 2, started_at = COALESCE(j.started_at, l.started_at)
        FROM (SELECT id, min(state) AS state, min(started_at) AS started_at FROM locked GROUP BY id) l
        WHERE j.id = l.id AND l.state = 1
    ), noted AS (
        UPDATE attempt a SET started_at = l.started_at FROM locked l WHERE a.id = l.attempt_id AND a.started_at IS NULL
    )
    SELECT l.attempt_id FROM locked l;
END $$;

-- The jobs of these attempts, locked in the order of their ids, with what a verdict needs. `the_node` is locked before
-- them if it is given; with `free_only`, jobs that others have locked are left out. Of a gang's member only its job's
-- columns are sure to be fresh: its own must be read again once the job is locked.
DROP FUNCTION lock_ends;
CREATE FUNCTION lock_ends(attempts uuid[], the_node text, free_only boolean)
    RETURNS TABLE (job_id uuid, state smallint, current uuid, stop_cause smallint, stop_by text, failures integer,
        lost_nodes text[], key_id bigint, queue_seq bigint, class smallint, tenant_id uuid, attempt_id uuid, token uuid,
        number integer, node_id text, started_at timestamptz, outcome text, exit_code integer, max_retries integer,
        backoff_s double precision, backoff_multiplier double precision, member smallint, leader_id uuid)
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off
    SET enable_mergejoin = off AS $$
#variable_conflict use_column
BEGIN
    IF the_node IS NOT NULL THEN
        PERFORM 1 FROM node WHERE id = the_node FOR NO KEY UPDATE;
    END IF;
    IF free_only THEN
        attempts := ARRAY(SELECT a.id FROM attempt a JOIN job j ON j.id = a.job_id WHERE a.id = ANY(attempts)
            ORDER BY j.id FOR NO KEY UPDATE OF j SKIP LOCKED);
    END IF;
    RETURN QUERY SELECT j.id, j.state, j.attempt_id, j.stop_cause, j.stop_by, j.failures, j.lost_nodes, j.key_id,
        j.queue_seq, j.class, j.tenant_id, a.id, a.token, a.number, a.node_id, a.started_at, a.outcome, a.exit_code,
        s.max_retries, s.backoff_s, s.backoff_multiplier, a.member, a.leader_id
    FROM attempt a JOIN job j ON j.id = a.job_id JOIN job_spec s ON s.job_id = j.id
    WHERE a.id = ANY(attempts) ORDER BY j.id FOR NO KEY UPDATE OF j;
END $$;

-- Jobs of several members waited under a runner that no node has. They get keys from which the planner places them: of
-- their true runner, and of as many members as they asked for.
CREATE TEMPORARY TABLE old_gang ON COMMIT DROP AS
    SELECT j.id, j.state, j.key_id AS old_key, CASE WHEN s.script IS NULL THEN 'container' ELSE 'process' END AS runner,
        LEAST(1024, GREATEST(2, floor((s.asked -> 'gang' ->> 'min_members')::numeric)))::smallint AS members
    FROM job j JOIN job_spec s ON s.job_id = j.id WHERE s.runner = 'gang';
UPDATE job_spec s SET runner = g.runner, members = g.members FROM old_gang g WHERE s.job_id = g.id;
INSERT INTO scheduling_key (tenant_id, class, priority, runner, external_ok, cpus_milli, memory_bytes, gpus,
        gpu_memory_bytes, gpu_model, members)
    SELECT DISTINCT k.tenant_id, k.class, k.priority, 'gang-' || g.runner, false, k.cpus_milli, k.memory_bytes, k.gpus,
        k.gpu_memory_bytes, k.gpu_model, g.members
    FROM old_gang g JOIN scheduling_key k ON k.id = g.old_key WHERE g.state = 0
    ON CONFLICT ON CONSTRAINT uq_scheduling_key_shape DO UPDATE SET live = true, low_water = 0;
UPDATE job j SET key_id = n.id
    FROM old_gang g JOIN scheduling_key k ON k.id = g.old_key
    JOIN scheduling_key n ON (n.tenant_id, n.class, n.priority, n.runner, n.external_ok, n.cpus_milli, n.memory_bytes,
        n.gpus, n.gpu_memory_bytes, n.gpu_model, n.members) = (k.tenant_id, k.class, k.priority, 'gang-' || g.runner,
        false, k.cpus_milli, k.memory_bytes, k.gpus, k.gpu_memory_bytes, k.gpu_model, g.members)
    WHERE j.id = g.id AND g.state = 0;
