/*
 * The network, and what happens on a node: agent and keeper. They reach the row through the services only.
 */

/* The sender sees an error, yet the request is still under way. */
inline linger(op, n, t, how) {
    late_op = op;
    late_node = n;
    late_token = t;
    late_exit = how
}

#define CAN_LINGER (late_op == NOTHING && MAY_FAIL)

active proctype Network() {
    byte got, said, unheld;
end:
    do
    :: atomic {
        late_op != NOTHING ->
        if
        :: late_op == CLAIM   -> claim(late_node)
        :: late_op == STARTED -> report_started(late_token)
        :: late_op == RENEW   -> renew(late_node, late_token)
        :: late_op == FINISH  -> finish(late_token, late_exit)
        :: late_op == RELEASE -> release(late_token)
        :: true                                                      /* lost before the commit */
        fi;
        linger(NOTHING, 0, 0, 0);
        got = 0;
        said = 0;
        unheld = 0
    }
    od
}

/* ==== a node ================================================================================================= */

inline vacate(n) {
#ifdef BUG_STOP_NOTED_NOT_DONE
    noted[n] = false;
#endif
    place[n] = FREE;
    held[n] = 0;
    deadline[n] = 0;
    exit_record[n] = 0;
    signalled[n] = false
}

inline exit_as(n, how) {
    place[n] = EXITED;
    exit_record[n] = how;
    deadline[n] = 0;
    signalled[n] = false
}

/* The deadline counts from before the request was sent, so that it always lies before expires_at. */
#ifdef BUG_DEADLINE_FROM_REPLY
#define TIME_LEFT(age) (LEASE - MARGIN)
#else
#define TIME_LEFT(age) ((age < LEASE - MARGIN) * (LEASE - MARGIN - age))
#endif

#ifdef BUG_START_AFTER_DEADLINE
#define MAY_START(n) (place[n] == PREPARED)
#else
#define MAY_START(n) (place[n] == PREPARED && deadline[n] > 0)
#endif

/* What an agent does with the answer about the token that it holds. */
inline obey(n, what) {
    if
    :: what == GONE && (place[n] == LIVE || place[n] == PREPARED || place[n] == EXITED) -> vacate(n)
#ifdef BUG_STOP_NOTED_NOT_DONE
    :: what == STOP && place[n] == LIVE && !noted[n] -> signalled[n] = true
    :: what == STOP && place[n] == PREPARED -> noted[n] = true
#else
    :: what == STOP && place[n] == LIVE -> signalled[n] = true
    :: what == STOP && place[n] == PREPARED -> exit_as(n, STOPPED)
#endif
    :: else
    fi
}

/* The renewal named a token that this node does not hold. It is handed back by name, never by "all but these". */
inline hand_back(n, t) {
    if
    :: t == 0
#ifndef BUG_HANDBACK_RACES_CLAIM
    :: t != 0 && granted[n] != 0          /* a claim is unanswered: it may be just that token. Next renewal. */
    :: t != 0 && granted[n] == 0 ->
#else
    :: t != 0 ->
#endif
        if
        :: release(t)
        :: CAN_LINGER -> FAIL; linger(RELEASE, n, t, 0)
        :: MAY_FAIL -> FAIL
        fi
    fi
}

/* Liveness runs skip steps that change nothing, so that "everybody waits" exists and time can pass then. */
#ifdef LIVENESS
#define WORTH_CLAIMING   (state == PENDING && ready)
#define WORTH_REPORTING(n) (state == STARTING && token == held[n])
#define WORTH_RENEWING(n) \
    ((IN_USE(n) && deadline[n] < LEASE - MARGIN) \
     || (IN_USE(n) && !signalled[n] && (token != held[n] || state == STOPPING)) \
     || (place[n] == FREE && granted[n] == 0 && IS_HELD && holder == n))
#ifdef BUG_BELL_ONLY
#define AWAKE (bells > 0)
#else
#define AWAKE true
#endif
#else
#define WORTH_CLAIMING   true
#define WORTH_REPORTING(n) true
#define WORTH_RENEWING(n)  true
#define AWAKE true
#endif

proctype Agent(byte n) {
    byte got, said, unheld;
end:
    do
    /* Claim. The answer arrives later, or the commit is never heard of, or the request itself is late. */
    :: atomic {
        !IS_CUT(n) && place[n] == FREE && granted[n] == 0 && WORTH_CLAIMING && AWAKE ->
#ifdef LIVENESS
        bells = (bells > 0 -> bells - 1 : 0);
#endif
        if
        :: claim(n); granted[n] = got
        :: MAY_FAIL -> FAIL; claim(n)
        :: CAN_LINGER -> FAIL; linger(CLAIM, n, 0, 0)
        fi;
        got = 0
    }
    :: atomic {
        !IS_CUT(n) && granted[n] != 0 ->
        if
        :: TIME_LEFT(granted_age[n]) > 0 ->
            place[n] = PREPARED;
            held[n] = granted[n];
            deadline[n] = TIME_LEFT(granted_age[n])
        :: TIME_LEFT(granted_age[n]) == 0
        :: MAY_FAIL -> FAIL
        fi;
        granted[n] = 0;
        granted_age[n] = 0
    }
    /* Fetched and prepared: the keeper starts the process. */
    :: atomic {
        !IS_CUT(n) && MAY_START(n) ->
#ifdef P2
        assert(place[1 - n] != LIVE);                                /* P2: never two live processes */
#endif
        place[n] = LIVE
    }
    :: atomic {
        !IS_CUT(n) && place[n] == LIVE && WORTH_REPORTING(n) ->
        if
        :: report_started(held[n]); obey(n, said)
        :: MAY_FAIL -> FAIL; report_started(held[n])
        :: CAN_LINGER -> FAIL; linger(STARTED, n, held[n], 0)
        fi;
        said = 0
    }
    :: atomic {
        !IS_CUT(n) && answer[n] == NOTHING && WORTH_RENEWING(n) ->
        if
        :: renew(n, held[n]);
            hand_back(n, unheld);
            if
            :: held[n] != 0 -> answer[n] = said; answer_for[n] = held[n]
            :: else
            fi
        :: MAY_FAIL -> FAIL; renew(n, held[n])
        :: CAN_LINGER -> FAIL; linger(RENEW, n, held[n], 0)
        fi;
        said = 0;
        unheld = 0
    }
    :: atomic {
        !IS_CUT(n) && answer[n] != NOTHING ->
        if
        :: answer_for[n] == held[n] ->
            if
            :: answer[n] != GONE && IN_USE(n) && TIME_LEFT(answer_age[n]) > deadline[n] ->
                deadline[n] = TIME_LEFT(answer_age[n])
            :: else
            fi;
            obey(n, answer[n])
        :: answer_for[n] != held[n]                                  /* about something that is gone from here */
        :: MAY_FAIL -> FAIL
        fi;
        answer[n] = NOTHING;
        answer_for[n] = 0;
        answer_age[n] = 0
    }
    /* The exit record stays with the keeper until an answer came: a lost answer means that we say it again. */
    :: atomic {
        !IS_CUT(n) && place[n] == EXITED ->
        if
        :: finish(held[n], exit_record[n]); vacate(n)
        :: MAY_FAIL -> FAIL; finish(held[n], exit_record[n])
        :: CAN_LINGER -> FAIL; linger(FINISH, n, held[n], exit_record[n])
        fi
    }
    /* The agent dies and a new one attaches to the keeper: what was in its memory or on the wire to it is gone. */
    :: atomic {
        !IS_CUT(n) && MAY_FAIL ->
        FAIL;
        granted[n] = 0;
        granted_age[n] = 0;
        answer[n] = NOTHING;
        answer_for[n] = 0;
        answer_age[n] = 0;
        if
#ifdef BUG_KEEPER_SERVES_OLD_AGENT
        :: place[n] == PREPARED && queued[n] == 0 ->
            queued[n] = held[n];
            queued_until[n] = deadline[n];
            vacate(n)
#endif
        :: place[n] == PREPARED -> vacate(n)
        :: else
        fi
    }
    /* The host loses power and comes back. */
    :: atomic {
        !IS_CUT(n) && MAY_FAIL && place[n] != FREE ->
        FAIL;
        granted[n] = 0;
        granted_age[n] = 0;
        answer[n] = NOTHING;
        answer_for[n] = 0;
        answer_age[n] = 0;
        vacate(n)
    }
#ifdef LIVENESS
    /* The network is cut for good: the keeper is on its own, and the other node must do. */
    :: atomic { !IS_CUT(n) && !IS_CUT(1 - n) && MAY_FAIL -> FAIL; cut[n] = true }
#endif
    od
}

proctype Keeper(byte n) {
end:
    do
    :: atomic {
        place[n] == LIVE && signalled[n] -> exit_as(n, STOPPED)
    }
    :: atomic {
#ifdef LIVENESS
        !hangs &&
#endif
        place[n] == LIVE && !signalled[n] ->
        if
        :: exit_as(n, OK)
        :: exit_as(n, ERROR)
        fi
    }
#ifndef BUG_NO_KEEPER_DEADLINE
    :: atomic { place[n] == LIVE && deadline[n] == 0 -> vacate(n) }
#endif
#ifdef BUG_KEEPER_SERVES_OLD_AGENT
    :: atomic {
        queued[n] != 0 ->
        if
        :: place[n] == FREE && queued_until[n] > 0 ->
#ifdef P2
            assert(place[1 - n] != LIVE);
#endif
            place[n] = LIVE;
            held[n] = queued[n];
            deadline[n] = queued_until[n]
        :: else
        fi;
        queued[n] = 0;
        queued_until[n] = 0
    }
#endif
    od
}
