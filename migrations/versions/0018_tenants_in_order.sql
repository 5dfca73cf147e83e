DROP FUNCTION claimable_keys;

-- As before, of all tenants by their ids, or of `these` in the order in which they are given.
CREATE FUNCTION claimable_keys(the_class smallint, these uuid[], free_cpus bigint, free_memory bigint,
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
        SELECT weight, allow_preemption, quota_jobs, quota_cpus_milli, quota_memory_bytes, quota_gpus,
            quota_gpu_memory_bytes,
            COALESCE((SELECT average FROM tenant_share s WHERE s.tenant_id = w.tenant_id), 0) AS average, used.*
        FROM tenant CROSS JOIN LATERAL (
            SELECT COALESCE(sum(jobs), 0)::bigint AS used_jobs, COALESCE(sum(cpus_milli), 0)::bigint AS used_cpus,
                COALESCE(sum(memory_bytes), 0)::bigint AS used_memory, COALESCE(sum(gpus), 0)::bigint AS used_gpus,
                COALESCE(sum(gpu_memory_bytes), 0)::bigint AS used_gpu_memory
            FROM usage u WHERE u.tenant_id = w.tenant_id) used
        WHERE id = w.tenant_id AND active AND (quota_jobs IS NULL OR used.used_jobs < quota_jobs) LIMIT 1
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

-- Tenants with live keys in a class: their weight, what they use and used before, and how old their best key is.
CREATE FUNCTION waiting_tenants(the_class smallint)
    RETURNS TABLE (tenant_id uuid, low_water bigint, weight double precision, average double precision,
        used_jobs bigint, used_cpus bigint, used_memory bigint, used_gpus bigint)
    LANGUAGE plpgsql STABLE SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off
    SET enable_mergejoin = off AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY WITH RECURSIVE walk AS (
        (SELECT tenant_id, low_water FROM scheduling_key WHERE live AND class = the_class
            ORDER BY tenant_id, priority DESC, low_water LIMIT 1)
        UNION ALL
        SELECT n.tenant_id, n.low_water FROM walk w CROSS JOIN LATERAL (
            SELECT tenant_id, low_water FROM scheduling_key
            WHERE live AND class = the_class AND tenant_id > w.tenant_id
            ORDER BY tenant_id, priority DESC, low_water LIMIT 1) n
    )
    SELECT w.tenant_id, w.low_water, t.*
    FROM walk w
    CROSS JOIN LATERAL (
        SELECT weight, COALESCE((SELECT average FROM tenant_share s WHERE s.tenant_id = w.tenant_id), 0) AS average,
            used.*
        FROM tenant CROSS JOIN LATERAL (
            SELECT COALESCE(sum(jobs), 0)::bigint AS used_jobs, COALESCE(sum(cpus_milli), 0)::bigint AS used_cpus,
                COALESCE(sum(memory_bytes), 0)::bigint AS used_memory, COALESCE(sum(gpus), 0)::bigint AS used_gpus
            FROM usage u WHERE u.tenant_id = w.tenant_id) used
        WHERE id = w.tenant_id AND active LIMIT 1
    ) t;
END $$;
