-- Scheduling keys whose jobs no registered node could ever run, as the scheduler last found them.
CREATE TABLE unrunnable_key (
    key_id bigint NOT NULL CONSTRAINT fk_unrunnable_key_key REFERENCES scheduling_key (id) ON DELETE CASCADE
        CONSTRAINT pk_unrunnable_key PRIMARY KEY,
    code text NOT NULL,
    message text NOT NULL,
    since timestamptz NOT NULL DEFAULT now()
);
