/*
 * The row of the job and the services that write it, each one transaction. Knows nodes by their number only.
 */

inline ring() {
#ifdef LIVENESS
    /* After the commit. A bell may be lost or doubled. */
    if
    :: bells = (bells < 2 -> bells + 1 : 2)
    :: MAY_FAIL -> FAIL
    :: MAY_FAIL -> FAIL; bells = 2
    fi
#else
    skip     /* nodes poll, so a bell enables nothing that is not enabled anyway */
#endif
}

/* The only place that changes the state. */
inline become(to) {
#ifdef P6
    assert(!IS_TERMINAL);                                            /* P6: terminal states are final */
#endif
#ifdef P4
    assert(!cancel_accepted || to == CANCELLED || to == STOPPING);   /* P4: a cancel is never forgotten */
#endif
    state = to;
#ifdef P1
    if
    :: IS_TERMINAL -> results++; assert(results <= 1)                /* P1: one accepted result */
    :: else
    fi
#endif
}

inline end_attempt(writer, to) {
#ifdef P5
    assert(writer == token);                                         /* P5: a stale token changes nothing */
#endif
#ifdef P8
    assert(!(ended & (1 << writer)));                                /* P8: an attempt is accounted once */
    ended = ended | (1 << writer);
#endif
    become(to);
    cause = NO_CAUSE;
    holder = 0;
    lease = 0;
    if
    :: to == PENDING -> ring()
    :: else -> ready = false
    fi;
#ifndef BUG_TOKEN_SURVIVES_REQUEUE
    token = 0
#endif
}

inline extend_lease(writer) {
#ifdef P5
    assert(writer == token);
#endif
    lease = LEASE
}

/* The fence: nothing that an agent says counts unless it names the current token. */
#if defined(BUG_FINISH_UNGUARDED)
#define MAY_FINISH(t) (state != ABSENT)
#elif defined(BUG_FINISH_BY_JOB)
#define MAY_FINISH(t) (IS_HELD)
#elif defined(BUG_TOKEN_SURVIVES_REQUEUE)
#define MAY_FINISH(t) (token == t)
#else
#define MAY_FINISH(t) (IS_HELD && token == t)
#endif

/* ---- service: submit (with an idempotency key) -------------------------------------------------------------- */
inline submit() {
    if
#ifdef BUG_SUBMIT_WITHOUT_KEY
    :: true ->
#else
    :: state == ABSENT ->
#endif
#ifdef P9
        created++;
        assert(created <= 1);                                        /* P9: a repeated submit makes no second job */
#endif
        state = PENDING;
        ready = true;
        ring()
#ifndef BUG_SUBMIT_WITHOUT_KEY
    :: else
#endif
    fi
}

/* ---- service: claim. Sets `got` to the new token, or 0 ------------------------------------------------------ */
inline claim(n) {
    got = 0;
    if
    :: state == PENDING && ready && claims < CLAIM_LIMIT && MAY_CLAIM_NOW(n) ->
        claims++;
        become(STARTING);
        ready = false;
        token = claims;
        holder = n;
        lease = LEASE;
        got = token
    :: else
    fi
}

/* ---- service: report_started. Sets `said` ------------------------------------------------------------------- */
inline report_started(t) {
    if
    :: !IS_HELD || token != t -> said = GONE
    :: IS_HELD && token == t && state == STOPPING -> said = STOP
    :: IS_HELD && token == t && state == RUNNING -> said = HELD
    :: IS_HELD && token == t && state == STARTING -> become(RUNNING); said = HELD
    fi
}

#define USER_FAILURE(how) (cause != CANCEL && (how == ERROR || (how == STOPPED && cause == TIME)))

/* ---- service: finish. A repeated or stale one changes nothing and is answered all the same ------------------ */
inline finish(t, how) {
    if
    :: MAY_FINISH(t) ->
        if
#ifdef BUG_EXIT_BEATS_CANCEL
        :: cause == CANCEL && how == STOPPED -> end_attempt(t, CANCELLED)
        :: cause == CANCEL && how != STOPPED -> end_attempt(t, COMPLETED)
#else
        :: cause == CANCEL -> end_attempt(t, CANCELLED)
#endif
        :: cause != CANCEL && how == OK -> end_attempt(t, COMPLETED)
        :: USER_FAILURE(how) && retries > 0 -> retries--; end_attempt(t, PENDING)     /* backoff: not ready */
        :: USER_FAILURE(how) && retries == 0 -> end_attempt(t, FAILED)
        :: how == STOPPED && (cause == PREEMPT || cause == DRAIN) -> ready = true; end_attempt(t, PENDING)
#ifdef BUG_FINISH_BY_JOB
        :: how == STOPPED && cause == NO_CAUSE -> end_attempt(t, FAILED)
#elif defined(BUG_FINISH_UNGUARDED)
        :: how == STOPPED && cause == NO_CAUSE -> end_attempt(t, FAILED)
#elif defined(BUG_TOKEN_SURVIVES_REQUEUE)
        :: how == STOPPED && cause == NO_CAUSE -> ready = true; end_attempt(t, PENDING)
#else
        :: how == STOPPED && cause == NO_CAUSE -> assert(false)      /* nobody signals a job that was not stopped */
#endif
        fi
    :: else
    fi
}

/* ---- the end of an attempt whose lease is gone: by the reaper, or handed back by its own node ---------------- */
inline lose() {
    if
#ifdef BUG_CANCEL_DROPPED_ON_LOSS
    :: cause == CANCEL -> ready = true; end_attempt(token, PENDING)
#else
    :: cause == CANCEL -> end_attempt(token, CANCELLED)
#endif
    :: cause != CANCEL -> ready = true; end_attempt(token, PENDING)     /* never charged */
    fi;
#ifdef P7
    assert(!cancel_accepted || state == CANCELLED)                   /* P7: lost while stopping for cancel */
#endif
}

/* ---- service: release (an agent hands back a token that it does not hold) ----------------------------------- */
inline release(t) {
    if
    :: IS_HELD && token == t -> lose()
    :: else
    fi
}

/* ---- service: renew. Extends what is listed, sets `said` for it, and `unheld` to a token that the row gives to
        this node and the node did not list ------------------------------------------------------------------- */
inline renew(n, listed) {
    unheld = 0;
    said = GONE;
    if
    :: IS_HELD && holder == n && token == listed ->
        extend_lease(listed);
#ifdef BUG_STOP_BY_MESSAGE_ONLY
        said = HELD
#else
        said = (state == STOPPING -> STOP : HELD)
#endif
    :: IS_HELD && holder == n && token != listed ->
#if defined(BUG_RENEW_BY_NODE)
        extend_lease(listed)
#elif defined(BUG_BLIND_HANDBACK)
        lose()
#else
        unheld = token
#endif
    :: else
    fi
}

/* ---- service: stop ------------------------------------------------------------------------------------------ */
inline stop(why) {
    if
    :: state == PENDING && why == CANCEL -> cancel_accepted = true; become(CANCELLED); ready = false
    :: state == STARTING || state == RUNNING ->
        cancel_accepted = (cancel_accepted || why == CANCEL);
        become(STOPPING);
        cause = why
    :: state == STOPPING ->
        cancel_accepted = (cancel_accepted || why == CANCEL);
#ifdef BUG_LAST_CAUSE_WINS
        cause = why;
#else
        cause = (why > cause -> why : cause);
#endif
#ifdef BUG_STOP_REVIVES
    :: IS_TERMINAL -> become(STOPPING)
#endif
    :: else
    fi
#ifdef P4
    ;
    assert(!(cancel_accepted && state == STOPPING) || cause == CANCEL)
#endif
}
