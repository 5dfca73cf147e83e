-- What is kept of a tenant's quota for one of its jobs that waited too long: its others get only what that leaves. It
-- counts only while its job is pending and ready, and until `expires_at`, so that a scheduler that died holds nothing for
-- ever. A quota that is changed ends it.
CREATE TABLE quota_hold (
    tenant_id uuid NOT NULL CONSTRAINT pk_quota_hold PRIMARY KEY
        CONSTRAINT fk_quota_hold_tenant REFERENCES tenant (id) ON DELETE CASCADE,
    job_id uuid NOT NULL CONSTRAINT fk_quota_hold_job REFERENCES job (id) ON DELETE CASCADE,
    jobs bigint NOT NULL,
    cpus_milli bigint NOT NULL,
    memory_bytes bigint NOT NULL,
    gpus bigint NOT NULL,
    gpu_memory_bytes bigint NOT NULL,
    made_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL
) WITH (fillfactor = 50);
-- For the jobs that retention deletes.
CREATE INDEX ix_quota_hold_job ON quota_hold (job_id);

-- As before; the quotas are without what is kept of them. The job for which it is kept is started by the planner.
CREATE OR REPLACE FUNCTION claimable_keys(the_class smallint, these uuid[], free_cpus bigint, free_memory bigint,
    gpu_memories bigint[], gpu_models text[], slice_memories bigint[], slice_models text[], runners text[],
    external boolean, the_node text, shy text, passed bigint[], probe integer, per_tenant integer, page integer)
    RETURNS TABLE (id bigint, tenant_id uuid, class smallint, priority integer, cpus_milli bigint, memory_bytes bigint,
        gpus integer, gpu_memory_bytes bigint, gpu_model text, gpu_shared boolean, queue_seq bigint, waiting bigint,
        waited_s double precision, low_water bigint,
        weight double precision, allow_preemption boolean, quota_jobs bigint, quota_cpus_milli bigint,
        quota_memory_bytes bigint, quota_gpus bigint, quota_gpu_memory_bytes bigint, average double precision,
        used_jobs bigint, used_cpus bigint, used_memory bigint, used_gpus bigint, used_gpu_memory bigint)
    LANGUAGE plpgsql STABLE SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off
    SET enable_mergejoin = off AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY WITH RECURSIVE walk AS (
        (SELECT tenant_id FROM scheduling_key WHERE these IS NULL AND live AND class = the_class
            ORDER BY tenant_id LIMIT 1)
        UNION ALL
        SELECT n.tenant_id FROM walk w CROSS JOIN LATERAL (
            SELECT tenant_id FROM scheduling_key WHERE live AND class = the_class AND tenant_id > w.tenant_id
            ORDER BY tenant_id LIMIT 1) n
    )
    SELECT k.*, t.*
    FROM (SELECT tenant_id FROM walk UNION ALL SELECT unnest(these)) w
    CROSS JOIN LATERAL (
        SELECT weight, allow_preemption, quota_jobs - COALESCE(kept.jobs, 0) AS quota_jobs,
            quota_cpus_milli - COALESCE(kept.cpus_milli, 0) AS quota_cpus_milli,
            quota_memory_bytes - COALESCE(kept.memory_bytes, 0) AS quota_memory_bytes,
            quota_gpus - COALESCE(kept.gpus, 0) AS quota_gpus,
            quota_gpu_memory_bytes - COALESCE(kept.gpu_memory_bytes, 0) AS quota_gpu_memory_bytes,
            COALESCE((SELECT average FROM tenant_share s WHERE s.tenant_id = w.tenant_id), 0) AS average, used.*
        FROM tenant CROSS JOIN LATERAL (
            SELECT COALESCE(sum(jobs), 0)::bigint AS used_jobs, COALESCE(sum(cpus_milli), 0)::bigint AS used_cpus,
                COALESCE(sum(memory_bytes), 0)::bigint AS used_memory, COALESCE(sum(gpus), 0)::bigint AS used_gpus,
                COALESCE(sum(gpu_memory_bytes), 0)::bigint AS used_gpu_memory
            FROM usage u WHERE u.tenant_id = w.tenant_id) used
        LEFT JOIN LATERAL (
            SELECT h.jobs, h.cpus_milli, h.memory_bytes, h.gpus, h.gpu_memory_bytes FROM quota_hold h
            WHERE COALESCE(quota_jobs, quota_cpus_milli, quota_memory_bytes, quota_gpus, quota_gpu_memory_bytes)
                    IS NOT NULL
                AND h.tenant_id = w.tenant_id AND h.expires_at > now()
                AND EXISTS (SELECT 1 FROM job j WHERE j.id = h.job_id AND j.state = 0 AND j.ready) LIMIT 1) kept ON true
        WHERE id = w.tenant_id AND active
            AND (quota_jobs IS NULL OR used.used_jobs + COALESCE(kept.jobs, 0) < quota_jobs) LIMIT 1
    ) t
    CROSS JOIN LATERAL (
        SELECT k.id, k.tenant_id, k.class, k.priority, k.cpus_milli, k.memory_bytes, k.gpus, k.gpu_memory_bytes,
            k.gpu_model, k.gpu_shared, h.queue_seq, h.waiting,
            extract(epoch FROM clock_timestamp() - h.since)::float8 AS waited_s, k.low_water
        FROM scheduling_key k CROSS JOIN LATERAL (
            SELECT min(queue_seq) AS queue_seq, count(*) AS waiting, min(created_at) AS since FROM (
                SELECT queue_seq, created_at FROM job j
                WHERE j.key_id = k.id AND j.state = 0 AND j.ready AND j.queue_seq >= k.low_water
                    AND (shy IS NULL OR shy <> ALL(ARRAY(SELECT a.node_id FROM attempt a WHERE a.job_id = j.id)))
                    AND (j.attempt = 0 OR NOT EXISTS (SELECT 1 FROM retry_elsewhere r
                        WHERE r.job_id = j.id AND r.node_id = the_node AND r.until > now()))
                ORDER BY queue_seq LIMIT probe) w) h
        WHERE k.live AND k.members = 1 AND k.class = the_class AND k.tenant_id = w.tenant_id
            AND k.cpus_milli <= free_cpus AND k.memory_bytes <= free_memory AND k.runner = ANY(runners)
            AND (k.gpus = 0 OR k.gpus <= (
                SELECT count(*) FROM unnest(CASE WHEN k.gpu_shared THEN slice_memories ELSE gpu_memories END,
                    CASE WHEN k.gpu_shared THEN slice_models ELSE gpu_models END) AS g (memory, model)
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
