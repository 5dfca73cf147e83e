-- Jobs that somebody holds back, and jobs that are made to run again.

-- A requeue is the weakest cause: whatever else stops the job as well decides how it ends.
ALTER TABLE job DROP CONSTRAINT ck_job_stop_cause,
    ADD CONSTRAINT ck_job_stop_cause CHECK (stop_cause BETWEEN 0 AND 4) NOT VALID;
ALTER TABLE job VALIDATE CONSTRAINT ck_job_stop_cause;

-- Who holds a pending job, and what it is again when it is released: its reason, message, backoff, and whether it was
-- ready. The row of an active job, which is being stopped to wait again, holds it from then on.
CREATE TABLE job_hold (
    job_id uuid NOT NULL CONSTRAINT fk_job_hold_job REFERENCES job (id) ON DELETE CASCADE
        CONSTRAINT pk_job_hold PRIMARY KEY,
    held_by text NOT NULL,
    operator boolean NOT NULL,
    reason text NOT NULL DEFAULT '',
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    was_reason text NOT NULL DEFAULT 'new',
    was_message text NOT NULL DEFAULT '',
    was_ready boolean NOT NULL DEFAULT true,
    was_not_before timestamptz
);
