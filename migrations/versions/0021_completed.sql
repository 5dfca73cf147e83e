-- As before, but a node is credited with what completed there, not with all that ended: `completed` of `usage`.
CREATE OR REPLACE FUNCTION end_attempts(ends json) RETURNS void
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
        RETURNING attempt_id, tenant_id, node_id, cpus_milli, memory_bytes, gpus, gpu_memory_bytes
    ), less AS (
        SELECT g.tenant_id, g.node_id, count(*) AS jobs, sum(g.cpus_milli) AS cpus, sum(g.memory_bytes) AS memory,
            sum(g.gpus) AS gpus, sum(g.gpus * g.gpu_memory_bytes) AS gpu_memory,
            count(*) FILTER (WHERE a.outcome = 'completed') AS completed
        FROM gone g JOIN attempt a ON a.id = g.attempt_id GROUP BY 1, 2
    ), locked AS MATERIALIZED (
        SELECT u.tenant_id, u.node_id FROM usage u
        WHERE (u.tenant_id, u.node_id) IN (SELECT tenant_id, node_id FROM less)
        ORDER BY 1, 2 FOR UPDATE
    )
    UPDATE usage u SET jobs = u.jobs - l.jobs, cpus_milli = u.cpus_milli - l.cpus,
        memory_bytes = u.memory_bytes - l.memory, gpus = u.gpus - l.gpus,
        gpu_memory_bytes = u.gpu_memory_bytes - l.gpu_memory, completed = u.completed + l.completed
    FROM less l JOIN locked USING (tenant_id, node_id) WHERE u.tenant_id = l.tenant_id AND u.node_id = l.node_id;
END $$;
