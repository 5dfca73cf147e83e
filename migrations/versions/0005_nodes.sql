-- What operators say about a node. An agent that registers again writes none of it: only operators take it back.
-- `gpus_out` maps the UUID of a GPU that was taken out to {reason, by, at}.
ALTER TABLE node ADD COLUMN drain_reason text,
    ADD COLUMN drain_by text,
    ADD COLUMN drain_at timestamptz,
    ADD COLUMN drain_deadline timestamptz,
    ADD COLUMN operator_labels jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN gpus_out jsonb NOT NULL DEFAULT '{}';
