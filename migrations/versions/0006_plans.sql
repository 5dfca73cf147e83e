-- The statements of claims and reports as functions. A connection parses and plans each of them once and keeps the plan,
-- also through a pooler of transactions, where it could not keep a prepared statement. A batch costs more to parse and
-- plan than to run.
--
-- A plan that is kept must not depend on how full the tables were when it was made: it goes by index from the few ids
-- that a batch names, never through a whole table. That is what the settings of each function say.

-- Locks a node and tells what is allocated on it, which GPUs it holds, and in which classes any key is live. Two
-- statements: the second must see what was committed while the first waited for the lock.
CREATE FUNCTION lock_node(the_node text) RETURNS TABLE (node node, used_jobs bigint, used_cpus bigint,
    used_memory bigint, held text[], classes smallint[])
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off
    SET enable_mergejoin = off AS $$
#variable_conflict use_column
BEGIN
    PERFORM 1 FROM node WHERE id = the_node FOR NO KEY UPDATE;
    RETURN QUERY SELECT n, u.used_jobs, u.used_cpus, u.used_memory,
        ARRAY(SELECT gpu_uuid FROM gpu_hold WHERE node_id = n.id),
        ARRAY(SELECT c FROM unnest('{0,1,2}'::smallint[]) c
            WHERE EXISTS (SELECT 1 FROM scheduling_key WHERE live AND class = c) ORDER BY c)
    FROM node n CROSS JOIN LATERAL (
        SELECT COALESCE(sum(jobs), 0)::bigint AS used_jobs, COALESCE(sum(cpus_milli), 0)::bigint AS used_cpus,
            COALESCE(sum(memory_bytes), 0)::bigint AS used_memory FROM usage WHERE node_id = n.id) u
    WHERE n.id = the_node;
END $$;

-- Keys of a class with pending jobs that fit: app/storage/keys.py tells how. Tenants beyond `after` up to `upto`.
CREATE FUNCTION claimable_keys(the_class smallint, after uuid, upto uuid, free_cpus bigint, free_memory bigint,
    gpu_memories bigint[], gpu_models text[], runners text[], external boolean, shy text, passed bigint[],
    probe integer, per_tenant integer, page integer)
    RETURNS TABLE (id bigint, tenant_id uuid, class smallint, priority integer, cpus_milli bigint, memory_bytes bigint,
        gpus integer, gpu_memory_bytes bigint, gpu_model text, queue_seq bigint, waiting bigint, low_water bigint,
        weight double precision, quota_jobs bigint, quota_cpus_milli bigint, quota_memory_bytes bigint,
        quota_gpus bigint, quota_gpu_memory_bytes bigint, used_jobs bigint, used_cpus bigint, used_memory bigint,
        used_gpus bigint, used_gpu_memory bigint)
    LANGUAGE plpgsql STABLE SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off
    SET enable_mergejoin = off AS $$
#variable_conflict use_column
DECLARE
    least_id CONSTANT uuid := COALESCE(after, '00000000-0000-0000-0000-000000000000');
    greatest_id CONSTANT uuid := COALESCE(upto, 'ffffffff-ffff-ffff-ffff-ffffffffffff');
BEGIN
    RETURN QUERY WITH RECURSIVE walk AS (
        (SELECT tenant_id FROM scheduling_key WHERE live AND class = the_class AND tenant_id > least_id
            ORDER BY tenant_id LIMIT 1)
        UNION ALL
        SELECT n.tenant_id FROM walk w CROSS JOIN LATERAL (
            SELECT tenant_id FROM scheduling_key WHERE live AND class = the_class AND tenant_id > w.tenant_id
                AND tenant_id <= greatest_id
            ORDER BY tenant_id LIMIT 1) n
    )
    SELECT k.*, t.*
    FROM walk w
    CROSS JOIN LATERAL (
        SELECT weight, quota_jobs, quota_cpus_milli, quota_memory_bytes, quota_gpus, quota_gpu_memory_bytes, used.*
        FROM tenant CROSS JOIN LATERAL (
            SELECT COALESCE(sum(jobs), 0)::bigint AS used_jobs, COALESCE(sum(cpus_milli), 0)::bigint AS used_cpus,
                COALESCE(sum(memory_bytes), 0)::bigint AS used_memory, COALESCE(sum(gpus), 0)::bigint AS used_gpus,
                COALESCE(sum(gpu_memory_bytes), 0)::bigint AS used_gpu_memory
            FROM usage u WHERE u.tenant_id = w.tenant_id) used
        WHERE id = w.tenant_id AND active AND (quota_jobs IS NULL OR used.used_jobs < quota_jobs) LIMIT 1
    ) t
    CROSS JOIN LATERAL (
        SELECT k.id, k.tenant_id, k.class, k.priority, k.cpus_milli, k.memory_bytes, k.gpus, k.gpu_memory_bytes,
            k.gpu_model, h.queue_seq, h.waiting, k.low_water
        FROM scheduling_key k CROSS JOIN LATERAL (
            SELECT min(queue_seq) AS queue_seq, count(*) AS waiting FROM (
                SELECT queue_seq FROM job j
                WHERE j.key_id = k.id AND j.state = 0 AND j.ready AND j.queue_seq >= k.low_water
                    AND (shy IS NULL OR shy <> ALL(ARRAY(SELECT a.node_id FROM attempt a WHERE a.job_id = j.id)))
                ORDER BY queue_seq LIMIT probe) w) h
        WHERE k.live AND k.class = the_class AND k.tenant_id = w.tenant_id AND k.cpus_milli <= free_cpus
            AND k.memory_bytes <= free_memory AND k.runner = ANY(runners)
            AND (k.gpus = 0 OR k.gpus <= (
                SELECT count(*) FROM unnest(gpu_memories, gpu_models) AS g (memory, model)
                WHERE g.memory >= k.gpu_memory_bytes AND position(lower(k.gpu_model) IN g.model) > 0))
            AND (NOT external OR k.external_ok) AND k.id <> ALL(passed)
            AND (t.quota_cpus_milli IS NULL OR t.used_cpus + k.cpus_milli <= t.quota_cpus_milli)
            AND (t.quota_memory_bytes IS NULL OR t.used_memory + k.memory_bytes <= t.quota_memory_bytes)
            AND (t.quota_gpus IS NULL OR k.gpus = 0 OR t.used_gpus + k.gpus <= t.quota_gpus)
            AND (t.quota_gpu_memory_bytes IS NULL OR k.gpus * k.gpu_memory_bytes = 0
                OR t.used_gpu_memory + k.gpus * k.gpu_memory_bytes <= t.quota_gpu_memory_bytes)
            AND h.waiting > 0
        ORDER BY k.priority DESC, k.low_water LIMIT per_tenant
    ) k LIMIT page;
END $$;

-- Moves up to `counts` of each key's oldest ready jobs to starting, skipping rows that others hold.
CREATE FUNCTION take_jobs(keys bigint[], counts integer[], low_waters bigint[], the_node text, shy text)
    RETURNS TABLE (id uuid, tenant_id uuid, key_id bigint, class smallint, type text, attempt integer, attempt_id uuid,
        runner text, binary_url text, binary_sha256 text, image text, script text, command jsonb, arguments jsonb,
        environment jsonb, hard_limits boolean, time_limit_s double precision, grace_s double precision, config jsonb)
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off
    SET enable_mergejoin = off AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY WITH picked AS MATERIALIZED (
        SELECT j.id, w.place, j.queue_seq
        FROM unnest(keys, counts, low_waters) WITH ORDINALITY AS w (key_id, n, low, place) CROSS JOIN LATERAL (
            SELECT id, queue_seq FROM job
            WHERE key_id = w.key_id AND state = 0 AND ready AND queue_seq >= w.low
                AND (shy IS NULL OR shy <> ALL(ARRAY(SELECT a.node_id FROM attempt a WHERE a.job_id = job.id)))
            ORDER BY queue_seq LIMIT w.n FOR UPDATE SKIP LOCKED) j
    ), taken AS (
        UPDATE job SET state = 1, ready = false, reason = NULL, message = '', attempt = job.attempt + 1,
            attempt_id = gen_random_uuid(), node_id = the_node
        WHERE id = ANY(ARRAY(SELECT id FROM picked))
        RETURNING id, tenant_id, key_id, class, type, attempt, attempt_id
    )
    SELECT taken.*, s.runner, s.binary_url, s.binary_sha256, s.image, s.script, s.command, s.arguments, s.environment,
        s.hard_limits, s.time_limit_s, s.grace_s, s.config
    FROM taken JOIN picked USING (id) JOIN job_spec s ON s.job_id = taken.id
    WHERE s.job_id = ANY(ARRAY(SELECT id FROM picked)) ORDER BY picked.place, picked.queue_seq;
END $$;

-- Writes attempts, allocations, leases and usage of jobs that `take_jobs` took. `running`: their executor starts at once.
CREATE FUNCTION hold_jobs(holds json, the_node text, ip text, lease_s double precision, running boolean)
    RETURNS TABLE (log_day date, expires_at timestamptz)
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off
    SET enable_mergejoin = off AS $$
#variable_conflict use_column
DECLARE
    today CONSTANT date := CURRENT_DATE;
    expiry CONSTANT timestamptz := clock_timestamp() + make_interval(secs => lease_s);
BEGIN
    WITH held AS MATERIALIZED (
        SELECT * FROM json_to_recordset(holds) AS h (attempt_id uuid, job_id uuid, number integer, token uuid,
            tenant_id uuid, cpus_milli bigint, memory_bytes bigint, gpus integer, gpu_memory_bytes bigint)
    ), a AS (
        INSERT INTO attempt (id, job_id, number, node_id, node_ip, token, log_day, started_at)
        SELECT attempt_id, job_id, number, the_node, hold_jobs.ip, token, today, CASE WHEN running THEN now() END
        FROM held
    ), l AS (
        INSERT INTO allocation (attempt_id, tenant_id, node_id, cpus_milli, memory_bytes, gpus, gpu_memory_bytes, token)
        SELECT attempt_id, tenant_id, the_node, cpus_milli, memory_bytes, gpus, gpu_memory_bytes, token FROM held
    ), e AS (
        INSERT INTO lease (attempt_id, node_id, token, expires_at)
        SELECT attempt_id, the_node, token, expiry FROM held
    )
    INSERT INTO usage AS u (tenant_id, node_id, jobs, cpus_milli, memory_bytes, gpus, gpu_memory_bytes)
    SELECT tenant_id, the_node, count(*), sum(cpus_milli), sum(memory_bytes), sum(gpus), sum(gpus * gpu_memory_bytes)
    FROM held GROUP BY tenant_id ORDER BY tenant_id
    ON CONFLICT (tenant_id, node_id) DO UPDATE SET jobs = u.jobs + EXCLUDED.jobs,
        cpus_milli = u.cpus_milli + EXCLUDED.cpus_milli, memory_bytes = u.memory_bytes + EXCLUDED.memory_bytes,
        gpus = u.gpus + EXCLUDED.gpus, gpu_memory_bytes = u.gpu_memory_bytes + EXCLUDED.gpu_memory_bytes;
    IF running THEN
        UPDATE job SET state = 2, started_at = COALESCE(started_at, now())
        WHERE id = ANY(ARRAY(SELECT h.job_id FROM json_to_recordset(holds) AS h (job_id uuid)));
    END IF;
    RETURN QUERY SELECT today, expiry;
END $$;

-- Starting jobs become running under the fence; the attempts that were still current.
CREATE FUNCTION start_attempts(starts json) RETURNS SETOF uuid
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off
    SET enable_mergejoin = off AS $$
BEGIN
    RETURN QUERY WITH locked AS MATERIALIZED (
        SELECT j.id, j.state, t.attempt_id, t.started_at
        FROM json_to_recordset(starts) AS t (attempt_id uuid, token uuid, started_at timestamptz)
        JOIN attempt a ON a.id = t.attempt_id AND a.token = t.token
        JOIN job j ON j.id = a.job_id AND j.attempt_id = a.id ORDER BY j.id FOR NO KEY UPDATE OF j
    ), moved AS (
        UPDATE job j SET state = 2, started_at = COALESCE(j.started_at, l.started_at) FROM locked l
        WHERE j.id = l.id AND l.state = 1
    ), noted AS (
        UPDATE attempt a SET started_at = l.started_at FROM locked l WHERE a.id = l.attempt_id AND a.started_at IS NULL
    )
    SELECT l.attempt_id FROM locked l;
END $$;

-- The jobs of these attempts, locked in the order of their ids, with what a verdict needs. `the_node` is locked before
-- them if it is given; with `free_only`, jobs that others have locked are left out.
CREATE FUNCTION lock_ends(attempts uuid[], the_node text, free_only boolean)
    RETURNS TABLE (job_id uuid, state smallint, current uuid, stop_cause smallint, stop_by text, failures integer,
        lost_nodes text[], key_id bigint, queue_seq bigint, class smallint, tenant_id uuid, attempt_id uuid, token uuid,
        number integer, node_id text, started_at timestamptz, outcome text, exit_code integer, max_retries integer,
        backoff_s double precision, backoff_multiplier double precision)
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
        s.max_retries, s.backoff_s, s.backoff_multiplier
    FROM attempt a JOIN job j ON j.id = a.job_id JOIN job_spec s ON s.job_id = j.id
    WHERE a.id = ANY(attempts) ORDER BY j.id FOR NO KEY UPDATE OF j;
END $$;

-- Writes verdicts: moves jobs on, ends attempts, gives back all that they held. The jobs must be locked, the fence
-- checked. The trigger on job refuses starting -> terminal to nobody, so that one statement may pass over running.
CREATE FUNCTION end_attempts(ends json) RETURNS void
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off
    SET enable_mergejoin = off AS $$
DECLARE
    attempts CONSTANT uuid[] := ARRAY(SELECT e.attempt_id FROM json_to_recordset(ends) AS e (attempt_id uuid));
BEGIN
    UPDATE job j SET state = e.state, ready = e.ready, reason = e.reason, message = e.message, attempt_id = NULL,
        stop_cause = CASE WHEN e.state = 0 THEN NULL ELSE j.stop_cause END,
        stop_by = CASE WHEN e.state = 0 THEN NULL ELSE j.stop_by END,
        stop_reason = CASE WHEN e.state = 0 THEN NULL ELSE j.stop_reason END,
        not_before = CASE WHEN e.state = 0 AND NOT e.ready
            THEN clock_timestamp() + make_interval(secs => e.delay_s) END,
        failures = j.failures + e.failed, lost_nodes = CASE WHEN e.lost_node IS NULL OR e.lost_node = ANY(j.lost_nodes)
            THEN j.lost_nodes ELSE j.lost_nodes || e.lost_node END,
        exit_code = CASE WHEN e.state = 0 THEN j.exit_code ELSE e.exit_code END,
        signal = CASE WHEN e.state = 0 THEN j.signal ELSE e.signal END,
        started_at = COALESCE(j.started_at, e.started_at),
        finished_at = CASE WHEN e.state > 3 THEN COALESCE(e.ended_at, clock_timestamp()) END
    FROM json_to_recordset(ends) AS e (job_id uuid, state smallint, ready boolean, reason text, message text,
        delay_s double precision, failed integer, lost_node text, exit_code integer, signal integer,
        started_at timestamptz, ended_at timestamptz)
    WHERE j.id = e.job_id;

    UPDATE attempt a SET ended_at = COALESCE(e.ended_at, clock_timestamp()), outcome = e.outcome,
        started_at = COALESCE(a.started_at, e.started_at), exit_code = e.exit_code, signal = e.signal, oom = e.oom,
        limit_hit = e.limit_hit, reason = e.message, stopped_by = e.stopped_by,
        peak_memory_bytes = e.peak_memory_bytes, cpu_seconds = e.cpu_seconds, output_bytes = e.output_bytes,
        truncated_bytes = e.truncated_bytes, log_gap = e.log_gap, peak_cpu_cores = e.peak_cpu_cores,
        peak_gpu_memory_bytes = e.peak_gpu_memory_bytes
    FROM json_to_recordset(ends) AS e (attempt_id uuid, outcome text, started_at timestamptz, ended_at timestamptz,
        exit_code integer, signal integer, oom boolean, limit_hit text, message text, stopped_by text,
        peak_memory_bytes bigint, cpu_seconds double precision, output_bytes bigint, truncated_bytes bigint,
        log_gap boolean, peak_cpu_cores double precision, peak_gpu_memory_bytes bigint)
    WHERE a.id = e.attempt_id;

    -- A renewal locks leases in this order; the deletes would meet them in any other and could deadlock with it.
    PERFORM 1 FROM lease WHERE attempt_id = ANY(attempts) ORDER BY attempt_id, member FOR UPDATE;
    WITH gone AS (
        DELETE FROM allocation WHERE attempt_id = ANY(attempts)
        RETURNING tenant_id, node_id, cpus_milli, memory_bytes, gpus, gpu_memory_bytes
    ), less AS (
        SELECT tenant_id, node_id, count(*) AS jobs, sum(cpus_milli) AS cpus, sum(memory_bytes) AS memory,
            sum(gpus) AS gpus, sum(gpus * gpu_memory_bytes) AS gpu_memory FROM gone GROUP BY 1, 2
    ), locked AS MATERIALIZED (
        SELECT u.tenant_id, u.node_id FROM usage u
        WHERE (u.tenant_id, u.node_id) IN (SELECT tenant_id, node_id FROM less)
        ORDER BY 1, 2 FOR UPDATE
    )
    UPDATE usage u SET jobs = u.jobs - l.jobs, cpus_milli = u.cpus_milli - l.cpus,
        memory_bytes = u.memory_bytes - l.memory, gpus = u.gpus - l.gpus,
        gpu_memory_bytes = u.gpu_memory_bytes - l.gpu_memory, completed = u.completed + l.jobs
    FROM less l JOIN locked USING (tenant_id, node_id) WHERE u.tenant_id = l.tenant_id AND u.node_id = l.node_id;
END $$;

-- Extends the leases that really are held with these tokens; the attempts that were extended.
CREATE FUNCTION renew_leases(the_node text, attempts uuid[], tokens uuid[], lease_s double precision)
    RETURNS SETOF uuid
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off
    SET enable_mergejoin = off AS $$
BEGIN
    RETURN QUERY WITH mine AS MATERIALIZED (
        SELECT l.attempt_id, l.member FROM lease l
        JOIN unnest(attempts, tokens) AS h (attempt_id, token) USING (attempt_id, token)
        WHERE l.node_id = the_node ORDER BY l.attempt_id, l.member FOR UPDATE OF l)
    UPDATE lease l SET expires_at = clock_timestamp() + make_interval(secs => lease_s)
    FROM mine WHERE l.attempt_id = mine.attempt_id AND l.member = mine.member RETURNING l.attempt_id;
END $$;

-- What these triggers keep as their plans must not be made under the settings above: many rows may change at a time.
ALTER FUNCTION job_changed() SET enable_hashjoin = on;
