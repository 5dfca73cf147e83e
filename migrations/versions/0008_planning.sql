-- What the planner needs: jobs of several members, what it places, what it reserves, and what tenants used before.

-- Every member of a job of several is an attempt of its own, so that allocation, lease, GPUs, logs and samples stay keyed
-- by attempt. They share the job's number; `leader_id` is the attempt of member 0 (also its own), NULL for a plain job.
-- A member is current while COALESCE(leader_id, id) is its job's attempt_id.
ALTER TABLE attempt
    ADD COLUMN member smallint NOT NULL DEFAULT 0,
    ADD COLUMN leader_id uuid,
    -- Everything that the program needs is there; it starts when all members are prepared.
    ADD COLUMN prepared_at timestamptz,
    -- Where member 0 is met by the others.
    ADD COLUMN address text,
    ADD COLUMN port integer,
    -- When the program last saved what it had: all that came after is lost if it is stopped now.
    ADD COLUMN checkpoint_at timestamptz,
    -- On the leader: why all members are being ended.
    ADD COLUMN broken text,
    ADD CONSTRAINT ck_attempt_member CHECK (member >= 0 AND (leader_id IS NOT NULL OR member = 0)),
    DROP CONSTRAINT uq_attempt_number,
    ADD CONSTRAINT uq_attempt_number UNIQUE (job_id, number, member);
CREATE INDEX ix_attempt_leader ON attempt (leader_id) WHERE leader_id IS NOT NULL;

ALTER TABLE job_spec
    ADD COLUMN members smallint NOT NULL DEFAULT 1 CONSTRAINT ck_job_spec_members CHECK (members >= 1),
    -- NULL: as its tenant's jobs are.
    ADD COLUMN preemptible boolean;

ALTER TABLE scheduling_key
    ADD COLUMN members smallint NOT NULL DEFAULT 1,
    DROP CONSTRAINT uq_scheduling_key_shape,
    ADD CONSTRAINT uq_scheduling_key_shape UNIQUE (tenant_id, class, priority, runner, external_ok, cpus_milli,
        memory_bytes, gpus, gpu_memory_bytes, gpu_model, members);

-- A job that the scheduler placed is the node's from then on; `delivered` once the node has been told.
ALTER TABLE lease ADD COLUMN delivered boolean NOT NULL DEFAULT true;
CREATE INDEX ix_lease_undelivered ON lease (node_id) WHERE NOT delivered;

-- Capacity of a node that is kept for a pending job: claims of class `class` and below leave it alone. It counts only
-- while its job is pending and ready, and until `expires_at`, so that a scheduler that died holds nothing for ever.
CREATE TABLE reservation (
    job_id uuid NOT NULL CONSTRAINT fk_reservation_job REFERENCES job (id) ON DELETE CASCADE,
    member smallint NOT NULL DEFAULT 0,
    node_id text NOT NULL,
    class smallint NOT NULL,
    slots integer NOT NULL,
    cpus_milli bigint NOT NULL,
    memory_bytes bigint NOT NULL,
    gpu_uuids text[] NOT NULL DEFAULT '{}',
    -- When the capacity should be free; NULL when nobody knows.
    starts_at timestamptz,
    made_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    -- Attempts that hold it now: what they give back does not count as free for others.
    awaited uuid[] NOT NULL DEFAULT '{}',
    why text NOT NULL DEFAULT '',
    CONSTRAINT pk_reservation PRIMARY KEY (job_id, member)
) WITH (fillfactor = 50);
CREATE INDEX ix_reservation_node ON reservation (node_id);

-- Why the planner placed a job nowhere at its last look.
CREATE TABLE plan_note (
    job_id uuid NOT NULL CONSTRAINT fk_plan_note_job REFERENCES job (id) ON DELETE CASCADE
        CONSTRAINT pk_plan_note PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    reason text NOT NULL,
    message text NOT NULL,
    numbers jsonb NOT NULL DEFAULT '{}'
);

-- What each tenant has used lately: a mean of the cost of what it holds, in which an older time counts less.
CREATE TABLE tenant_share (
    tenant_id uuid NOT NULL CONSTRAINT pk_tenant_share PRIMARY KEY
        CONSTRAINT fk_tenant_share_tenant REFERENCES tenant (id) ON DELETE CASCADE,
    average double precision NOT NULL DEFAULT 0,
    at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

DROP FUNCTION lock_node, claimable_keys, take_jobs;

-- Locks a node and tells what is allocated on it, which GPUs it holds, in which classes any key is live that claims may
-- take from, whether something was placed here that the node was not told of, and what is reserved here for others. Two
-- statements: the second must see what was committed while the first waited for the lock.
CREATE FUNCTION lock_node(the_node text) RETURNS TABLE (node node, used_jobs bigint, used_cpus bigint,
    used_memory bigint, held text[], classes smallint[], undelivered boolean, reserved json)
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off
    SET enable_mergejoin = off AS $$
#variable_conflict use_column
BEGIN
    PERFORM 1 FROM node WHERE id = the_node FOR NO KEY UPDATE;
    RETURN QUERY SELECT n, u.used_jobs, u.used_cpus, u.used_memory,
        ARRAY(SELECT gpu_uuid FROM gpu_hold WHERE node_id = n.id),
        ARRAY(SELECT c FROM unnest('{0,1,2}'::smallint[]) c
            WHERE EXISTS (SELECT 1 FROM scheduling_key WHERE live AND members = 1 AND class = c) ORDER BY c),
        EXISTS (SELECT 1 FROM lease WHERE node_id = n.id AND NOT delivered),
        CASE WHEN EXISTS (SELECT 1 FROM reservation WHERE node_id = n.id) THEN reservations_on(n.id) END
    FROM node n CROSS JOIN LATERAL (
        SELECT COALESCE(sum(jobs), 0)::bigint AS used_jobs, COALESCE(sum(cpus_milli), 0)::bigint AS used_cpus,
            COALESCE(sum(memory_bytes), 0)::bigint AS used_memory FROM usage WHERE node_id = n.id) u
    WHERE n.id = the_node;
END $$;

-- The reservations that count on a node, each with what the attempts that it waits for still hold there.
CREATE FUNCTION reservations_on(the_node text) RETURNS json
    LANGUAGE plpgsql STABLE SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off
    SET enable_mergejoin = off AS $$
BEGIN
    RETURN (SELECT json_agg(json_build_object('job_id', r.job_id, 'class', r.class, 'slots', r.slots,
            'cpus_milli', r.cpus_milli, 'memory_bytes', r.memory_bytes, 'gpu_uuids', r.gpu_uuids,
            'in_s', extract(epoch FROM r.starts_at - now())::float8,
            'awaited', (SELECT json_agg(json_build_array(a.attempt_id, a.cpus_milli, a.memory_bytes))
                FROM allocation a WHERE a.attempt_id = ANY(r.awaited) AND a.node_id = the_node)))
        FROM reservation r JOIN job j ON j.id = r.job_id
        WHERE r.node_id = the_node AND r.expires_at > now() AND j.state = 0 AND j.ready);
END $$;

-- Keys of a class with pending jobs that fit: app/storage/keys.py tells how. Tenants beyond `after` up to `upto`. Jobs of
-- several members are not for claims: the planner places them.
CREATE FUNCTION claimable_keys(the_class smallint, after uuid, upto uuid, free_cpus bigint, free_memory bigint,
    gpu_memories bigint[], gpu_models text[], runners text[], external boolean, shy text, passed bigint[],
    probe integer, per_tenant integer, page integer)
    RETURNS TABLE (id bigint, tenant_id uuid, class smallint, priority integer, cpus_milli bigint, memory_bytes bigint,
        gpus integer, gpu_memory_bytes bigint, gpu_model text, queue_seq bigint, waiting bigint, low_water bigint,
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
            k.gpu_model, h.queue_seq, h.waiting, k.low_water
        FROM scheduling_key k CROSS JOIN LATERAL (
            SELECT min(queue_seq) AS queue_seq, count(*) AS waiting FROM (
                SELECT queue_seq FROM job j
                WHERE j.key_id = k.id AND j.state = 0 AND j.ready AND j.queue_seq >= k.low_water
                    AND (shy IS NULL OR shy <> ALL(ARRAY(SELECT a.node_id FROM attempt a WHERE a.job_id = j.id)))
                ORDER BY queue_seq LIMIT probe) w) h
        WHERE k.live AND k.members = 1 AND k.class = the_class AND k.tenant_id = w.tenant_id
            AND k.cpus_milli <= free_cpus AND k.memory_bytes <= free_memory AND k.runner = ANY(runners)
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
        environment jsonb, hard_limits boolean, time_limit_s double precision, grace_s double precision, config jsonb,
        preemptible boolean)
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
        s.hard_limits, s.time_limit_s, s.grace_s, s.config, s.preemptible
    FROM taken JOIN picked USING (id) JOIN job_spec s ON s.job_id = taken.id
    WHERE s.job_id = ANY(ARRAY(SELECT id FROM picked)) ORDER BY picked.place, picked.queue_seq;
END $$;
