-- Since when a job could have started that was held, or waited for other jobs or for its array's turn; NULL: all along.
ALTER TABLE job ADD COLUMN ready_since timestamptz;

-- As before; the turn is when the job begins to wait for a node.
CREATE OR REPLACE FUNCTION give_turns(the_array uuid, turns integer) RETURNS integer
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    ids uuid[];
    keys bigint[];
BEGIN
    ids := ARRAY(SELECT id FROM job WHERE array_id = the_array AND state = 0 AND waits = 2
        AND reason IS DISTINCT FROM 'hold' ORDER BY array_index LIMIT turns FOR NO KEY UPDATE SKIP LOCKED);
    IF cardinality(ids) = 0 THEN
        RETURN 0;
    END IF;
    keys := ARRAY(SELECT DISTINCT key_id FROM job WHERE id = ANY(ids) ORDER BY 1);
    PERFORM 1 FROM scheduling_key WHERE id = ANY(keys) ORDER BY id FOR KEY SHARE;
    WITH behind AS MATERIALIZED (
        SELECT k.id, h.head FROM scheduling_key k
        JOIN (SELECT key_id, min(queue_seq) AS head FROM job WHERE id = ANY(ids) GROUP BY 1) h ON h.key_id = k.id
        WHERE k.id = ANY(keys) AND (NOT k.live OR k.low_water > h.head) ORDER BY k.id FOR NO KEY UPDATE OF k)
    UPDATE scheduling_key k SET live = true, low_water = LEAST(k.low_water, b.head) FROM behind b WHERE k.id = b.id;
    UPDATE job SET waits = 0, ready = true, reason = 'new', ready_since = clock_timestamp() WHERE id = ANY(ids);
    RETURN cardinality(ids);
END $$;
