-- Slices of GPUs. A job has a GPU to itself, or a slice of its memory beside the slices of others, never both.
ALTER TABLE scheduling_key
    ADD COLUMN gpu_shared boolean NOT NULL DEFAULT false,
    ADD CONSTRAINT ck_scheduling_key_slice CHECK (NOT gpu_shared OR (gpus = 1 AND gpu_memory_bytes > 0)),
    DROP CONSTRAINT uq_scheduling_key_shape,
    ADD CONSTRAINT uq_scheduling_key_shape UNIQUE (tenant_id, class, priority, runner, external_ok, cpus_milli,
        memory_bytes, gpus, gpu_memory_bytes, gpu_model, members, gpu_shared);

-- `gpu_sharing` maps the UUID of a GPU to what an operator said: true, jobs may share it; false, they may not. Of the
-- others the agent's setting says it.
ALTER TABLE node ADD COLUMN gpu_sharing jsonb NOT NULL DEFAULT '{}';

-- `memory_bytes` NULL: all of the GPU. `gpu_bytes` is what the GPU has in all, as its claim knew it.
ALTER TABLE gpu_hold
    ADD COLUMN memory_bytes bigint,
    ADD COLUMN gpu_bytes bigint,
    ADD CONSTRAINT ck_gpu_hold_slice CHECK (memory_bytes IS NULL OR (memory_bytes > 0 AND gpu_bytes IS NOT NULL)),
    DROP CONSTRAINT pk_gpu_hold,
    ADD CONSTRAINT pk_gpu_hold PRIMARY KEY (gpu_uuid, attempt_id, member);
CREATE UNIQUE INDEX uq_gpu_hold_exclusive ON gpu_hold (gpu_uuid) WHERE memory_bytes IS NULL;

-- Whatever a claim thinks is free: nobody shares a GPU that another has to himself, and slices fit its memory. Two that
-- insert for one GPU at the same time would each miss the other's row, so that they do it one after the other.
CREATE FUNCTION gpu_hold_added() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    wrong text;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('gpu:' || g.gpu_uuid, 72))
        FROM (SELECT DISTINCT gpu_uuid FROM added ORDER BY 1) g;
    SELECT h.gpu_uuid INTO wrong FROM gpu_hold h WHERE h.gpu_uuid = ANY(ARRAY(SELECT gpu_uuid FROM added))
        GROUP BY 1 HAVING (count(*) > 1 AND bool_or(h.memory_bytes IS NULL))
            OR sum(h.memory_bytes) > min(h.gpu_bytes) LIMIT 1;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION 'GPU % would be held beyond what it has', wrong USING ERRCODE = 'exclusion_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER gpu_hold_added AFTER INSERT ON gpu_hold REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION gpu_hold_added();

DROP FUNCTION lock_node, claimable_keys;

-- As before; `held` maps each GPU of the node that anybody holds to the bytes that slices hold of it, null for all.
CREATE FUNCTION lock_node(the_node text) RETURNS TABLE (node node, used_jobs bigint, used_cpus bigint,
    used_memory bigint, held jsonb, classes smallint[], undelivered boolean, reserved json)
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off
    SET enable_mergejoin = off AS $$
#variable_conflict use_column
BEGIN
    PERFORM 1 FROM node WHERE id = the_node FOR NO KEY UPDATE;
    RETURN QUERY SELECT n, u.used_jobs, u.used_cpus, u.used_memory,
        CASE WHEN n.gpus <> '[]' THEN (SELECT jsonb_object_agg(h.uuid, h.bytes) FROM (
            SELECT gpu_uuid AS uuid, sum(memory_bytes) AS bytes FROM gpu_hold
            WHERE gpu_uuid = ANY(ARRAY(SELECT g ->> 'uuid' FROM jsonb_array_elements(n.gpus) g)) GROUP BY 1) h) END,
        ARRAY(SELECT c FROM unnest('{0,1,2}'::smallint[]) c
            WHERE EXISTS (SELECT 1 FROM scheduling_key WHERE live AND members = 1 AND class = c) ORDER BY c),
        EXISTS (SELECT 1 FROM lease WHERE node_id = n.id AND NOT delivered),
        CASE WHEN EXISTS (SELECT 1 FROM reservation WHERE node_id = n.id) THEN reservations_on(n.id) END
    FROM node n CROSS JOIN LATERAL (
        SELECT COALESCE(sum(jobs), 0)::bigint AS used_jobs, COALESCE(sum(cpus_milli), 0)::bigint AS used_cpus,
            COALESCE(sum(memory_bytes), 0)::bigint AS used_memory FROM usage WHERE node_id = n.id) u
    WHERE n.id = the_node;
END $$;

-- As before, with slices: those fit `slice_memories`, the rest of each GPU that may be shared. `waited_s` is how long
-- the oldest of the next jobs has waited.
CREATE FUNCTION claimable_keys(the_class smallint, after uuid, upto uuid, free_cpus bigint, free_memory bigint,
    gpu_memories bigint[], gpu_models text[], slice_memories bigint[], slice_models text[], runners text[],
    external boolean, shy text, passed bigint[], probe integer, per_tenant integer, page integer)
    RETURNS TABLE (id bigint, tenant_id uuid, class smallint, priority integer, cpus_milli bigint, memory_bytes bigint,
        gpus integer, gpu_memory_bytes bigint, gpu_model text, gpu_shared boolean, queue_seq bigint, waiting bigint,
        waited_s double precision, low_water bigint,
        weight double precision, allow_preemption boolean, quota_jobs bigint, quota_cpus_milli bigint,
        quota_memory_bytes bigint, quota_gpus bigint, quota_gpu_memory_bytes bigint, average double precision,
        used_jobs bigint, used_cpus bigint, used_memory bigint, used_gpus bigint, used_gpu_memory bigint)
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
