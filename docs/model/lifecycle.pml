/*
 * The life of one job between the database and two nodes, for the Spin model checker.
 *
 * This file holds parameters, variables, scheduler, users and time; row.pml the services, node.pml agent and keeper.
 * Every `inline` marked "service" is one database transaction; an atomic step of Agent or Keeper is what one process
 * of a node does by itself. Faults are unlimited in the safety runs and come out of a budget in the liveness runs
 * (-DLIVENESS), because "in the end" can be promised only when the faults stop. README.md maps this file to the
 * design and lists what it leaves out; `check` runs all of it.
 *
 * -DP1 .. -DP9 switch single assertions on, -DALL all of them. -DBUG_... plants one bug each.
 */

#ifdef ALL
#define P1
#define P2
#define P4
#define P5
#define P6
#define P7
#define P8
#define P9
#endif

/* Time. One tick is an arbitrary length; the keeper gives up MARGIN ticks before the database does. */
#ifndef LEASE
#define LEASE   3
#endif
#define MARGIN  1

#ifndef CLAIMS
#define CLAIMS  3        /* attempts that are explored; a lost lease is not charged, so there is no natural bound */
#endif
#ifndef RETRIES
#define RETRIES 1        /* max_retries of the job */
#endif
#define NODES   2

/* State of the row. */
#define ABSENT    0
#define PENDING   1
#define STARTING  2
#define RUNNING   3
#define STOPPING  4
#define COMPLETED 5
#define FAILED    6
#define CANCELLED 7
#define IS_HELD     (state == STARTING || state == RUNNING || state == STOPPING)
#define IS_TERMINAL (state >= COMPLETED)

/* Causes of a stop; the larger one wins. */
#define NO_CAUSE 0
#define DRAIN    1
#define PREEMPT  2
#define TIME     3
#define CANCEL   4

/* What a node has in its one place for a job. PREPARED lives in the agent's memory, the others in the keeper. */
#define FREE     0
#define PREPARED 1
#define LIVE     2
#define EXITED   3
#define IN_USE(n) (place[n] == PREPARED || place[n] == LIVE)

/* Exit records. STOPPED: the process ended after the keeper had signalled it. */
#define OK      1
#define ERROR   2
#define STOPPED 3

/* Requests that can linger in the network after their sender has given up on them, and commit late. */
#define NOTHING 0
#define CLAIM   1
#define STARTED 2
#define RENEW   3
#define FINISH  4
#define RELEASE 5

/* Answers to a renewal or a start report. */
#define HELD 1
#define STOP 2
#define GONE 3

/* ---- the row: what PostgreSQL holds ------------------------------------------------------------------------- */
byte state;
byte cause;
byte token;              /* the fence of the current attempt; 0: none. Also its number */
byte holder;             /* node of the current attempt */
byte lease;              /* ticks until expires_at */
byte retries = RETRIES;
bool ready;
byte claims;             /* attempts so far; the next token is claims + 1 (in real life random) */

/* ---- the nodes ---------------------------------------------------------------------------------------------- */
byte place[NODES];
byte held[NODES];        /* token of what is in the place */
byte deadline[NODES];    /* ticks until the keeper kills */
byte exit_record[NODES];
bool signalled[NODES];
byte granted[NODES];     /* a claim's answer on its way: the token */
byte granted_age[NODES]; /* ticks since before the claim was sent */
byte answer[NODES];      /* a renewal's answer on its way */
byte answer_for[NODES];
byte answer_age[NODES];

#ifdef BUG_STOP_NOTED_NOT_DONE
bool noted[NODES];       /* the agent believes that it has passed the stop on */
#endif
#ifdef BUG_KEEPER_SERVES_OLD_AGENT
byte queued[NODES];      /* a dead agent's start command that waits in the keeper's socket: the token */
byte queued_until[NODES];
#endif

/* ---- one request whose sender no longer waits: it commits late, or never ------------------------------------ */
byte late_op;
byte late_node;
byte late_token;
byte late_exit;

/* ---- history, for the properties only ----------------------------------------------------------------------- */
bool cancel_accepted;
#ifdef P1
byte results;
#endif
#ifdef P8
byte ended;              /* bit t: the end of attempt t has been accounted */
#endif
#ifdef P9
byte created;
#endif

#ifdef LIVENESS
#ifndef FAULTS
#define FAULTS 2
#endif
#ifndef STALLS
#define STALLS 3
#endif
byte faults = FAULTS;    /* lost or late messages, crashes, lost hosts */
byte stalls = STALLS;    /* ticks that pass although somebody could have moved */
byte stops = 2;
byte bells;
bool hangs;              /* the program never ends by itself */
bool cut[NODES];         /* a node that never reaches the database again */
#define MAY_FAIL    (faults > 0)
#define FAIL        faults--
#define IS_CUT(n)   (cut[n])
#define CLAIM_LIMIT 15
#define MAY_CLAIM_NOW(n) true
#else
#define MAY_FAIL    true
#define FAIL        skip
#define IS_CUT(n)   false
#define CLAIM_LIMIT CLAIMS
#define MAY_CLAIM_NOW(n) (claims > 0 || n == 0)      /* the nodes are alike: call the first to claim node 0 */
#endif

#include "row.pml"
#include "node.pml"

/* ==== the scheduler, users, time ============================================================================= */

#ifdef BUG_REAP_EARLY
#define EXPIRED (lease <= MARGIN)
#else
#define EXPIRED (lease == 0)
#endif

active proctype Reaper() {
end:
    do
    :: atomic { IS_HELD && EXPIRED -> lose() }
    od
}

active proctype Promoter() {
end:
    do
    :: atomic { state == PENDING && !ready -> ready = true; ring() }
    od
}

/* Says it again until it hears the answer. */
active proctype Submitter() {
    do
    :: atomic { submit(); break }
    :: atomic { MAY_FAIL && state == ABSENT -> FAIL; submit() }      /* committed, but the caller saw an error */
#ifdef BUG_SUBMIT_WITHOUT_KEY
    :: atomic { MAY_FAIL && state != ABSENT -> FAIL; submit() }
#endif
    od
}

/* Users, the planner, the time limit and operators stop the job at any moment, any number of times. */
active proctype Stopper() {
end:
    do
#ifdef LIVENESS
    :: atomic { stops > 0 && state != ABSENT -> stops--; stop(CANCEL) }
    :: atomic { stops > 0 && IS_HELD -> stops--; stop(PREEMPT) }
    :: atomic { stops > 0 -> stops = 0 }                             /* leaves it alone */
#else
    :: atomic { state != ABSENT -> stop(CANCEL) }
    :: atomic { state == RUNNING || state == STOPPING -> stop(TIME) }
    :: atomic { IS_HELD -> stop(PREEMPT) }
    :: atomic { IS_HELD -> stop(DRAIN) }
#endif
    od
}

#define TIMED(n)  (IN_USE(n) || granted[n] != 0 || answer[n] != NOTHING)
#define OVERDUE(n) (place[n] == LIVE && deadline[n] == 0)

inline tick_node(n) {
#ifdef BUG_KEEPER_SERVES_OLD_AGENT
    queued_until[n] = (queued_until[n] > 0 -> queued_until[n] - 1 : 0);
#endif
    deadline[n] = (deadline[n] > 0 -> deadline[n] - 1 : 0);
    granted_age[n] = (granted[n] != 0 && granted_age[n] < LEASE -> granted_age[n] + 1 : granted_age[n]);
    answer_age[n] = (answer[n] != NOTHING && answer_age[n] < LEASE -> answer_age[n] + 1 : answer_age[n])
}

inline tick() {
    d_step {
        lease = (lease > 0 -> lease - 1 : 0);
        tick_node(0);
        tick_node(1)
    }
}

/* Time passes whenever it likes, but a keeper kills within the tick in which its deadline ends. */
#ifdef BUG_NO_KEEPER_DEADLINE
#define MAY_TICK (IS_HELD || TIMED(0) || TIMED(1))
#else
#define MAY_TICK ((IS_HELD || TIMED(0) || TIMED(1)) && !OVERDUE(0) && !OVERDUE(1))
#endif

active proctype Clock() {
end:
    do
#ifdef LIVENESS
    :: atomic { stalls > 0 && MAY_TICK -> stalls--; tick() }
    :: atomic { timeout && MAY_TICK -> tick() }
#else
    :: atomic { MAY_TICK -> tick() }
#endif
    od
}

init {
    atomic {
#ifdef LIVENESS
        if
        :: hangs = true
        :: hangs = false
        fi;
#endif
        run Agent(0);
        run Agent(1);
        run Keeper(0);
        run Keeper(1)
    }
}

#ifdef LIVENESS
ltl always_ends { <> (IS_TERMINAL || hangs) }
ltl cancel_ends { [] (cancel_accepted -> <> (state == CANCELLED)) }
#endif
