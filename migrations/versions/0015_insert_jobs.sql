-- Submitting as a function, so that its plan is kept (0006_plans.sql says why): to plan took longer than to insert.

-- Inserts jobs with their specs, in the order of their `place`; one with `waits` 1 is not ready. With a tier only if the
-- tenant is active and has exactly this tier and these quotas; else nothing is inserted, and there are no rows.
CREATE FUNCTION insert_jobs(the_tenant uuid, jobs json, the_tier text, limit_jobs bigint, limit_cpus bigint,
    limit_memory bigint, limit_gpus bigint, limit_gpu_memory bigint)
    RETURNS TABLE (id uuid, created_at timestamptz)
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off
    SET enable_mergejoin = off AS $$
#variable_conflict use_column
BEGIN
    IF the_tier IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM tenant t WHERE t.id = the_tenant AND t.active AND t.tier = the_tier
            AND (t.quota_jobs, t.quota_cpus_milli, t.quota_memory_bytes, t.quota_gpus, t.quota_gpu_memory_bytes)
                IS NOT DISTINCT FROM (limit_jobs, limit_cpus, limit_memory, limit_gpus, limit_gpu_memory)) THEN
        RETURN;
    END IF;
    RETURN QUERY WITH asked AS MATERIALIZED (
        SELECT * FROM json_to_recordset(jobs) AS r (id uuid, key_id bigint, class smallint, priority integer,
            contract text, type text, runner text, binary_url text, binary_sha256 text, image text, script text,
            command jsonb, arguments jsonb, environment jsonb, hard_limits boolean, cpus_milli bigint,
            memory_bytes bigint, time_limit_s double precision, grace_s double precision, max_retries integer,
            backoff_s double precision, backoff_multiplier double precision, asked jsonb, config jsonb,
            members smallint, preemptible boolean, place integer, waits smallint)
        ORDER BY place
    ), made AS (
        INSERT INTO job (id, tenant_id, key_id, class, priority, contract, type, waits, ready, reason)
        SELECT id, the_tenant, key_id, class, priority, contract, type, COALESCE(waits, 0), waits IS NULL,
            CASE WHEN waits IS NULL THEN 'new' ELSE 'dependency' END
        FROM asked ORDER BY place
        RETURNING id, created_at
    ), told AS (
        INSERT INTO job_spec (job_id, runner, binary_url, binary_sha256, image, script, command, arguments,
            environment, hard_limits, cpus_milli, memory_bytes, time_limit_s, grace_s, max_retries, backoff_s,
            backoff_multiplier, asked, config, members, preemptible)
        SELECT id, runner, binary_url, binary_sha256, image, script, command, arguments, environment, hard_limits,
            cpus_milli, memory_bytes, time_limit_s, grace_s, max_retries, backoff_s, backoff_multiplier, asked, config,
            members, preemptible
        FROM asked
    ) SELECT id, created_at FROM made;
END $$;
