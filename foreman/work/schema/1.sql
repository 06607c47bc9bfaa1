-- One row a job, from acceptance until it is pruned.  Times are milliseconds since the epoch, NULL if not yet.
CREATE TABLE jobs (
    seq             INTEGER PRIMARY KEY AUTOINCREMENT,  -- the order of acceptance: clocks step back, this does not
    id              TEXT NOT NULL UNIQUE,
    sync            INTEGER NOT NULL CHECK (sync IN (0, 1)),
    endpoint        TEXT NOT NULL,
    model           TEXT NOT NULL,                      -- as its caller wrote it
    name            TEXT NOT NULL,                      -- the same, normalised: what lists are asked for
    runner_model    TEXT NOT NULL,                      -- what the target really keeps loaded: the model …
    runner_options  TEXT NOT NULL,                      -- … and its load-time options
    size            INTEGER NOT NULL CHECK (size >= 0),
    state           TEXT NOT NULL CHECK (state IN ('queued', 'loading', 'working', 'done', 'failed')),
    listed          TEXT AS (state),                    -- the same for lists, whose indexes the queue is not to use
    attempt         INTEGER NOT NULL DEFAULT 0,
    failures        INTEGER NOT NULL DEFAULT 0,
    orphaned        INTEGER NOT NULL DEFAULT 0,         -- starts in a row that found it loading or working
    not_before      INTEGER NOT NULL DEFAULT 0,         -- 0: ready; otherwise in backoff until then
    created_at      INTEGER NOT NULL,
    loading_at      INTEGER,
    working_at      INTEGER,
    first_byte_at   INTEGER,
    completed_at    INTEGER,
    prompt_tokens   INTEGER,
    output_tokens   INTEGER,
    output_ms       INTEGER,
    unreachable_ms  INTEGER,
    waited_for      TEXT NOT NULL DEFAULT '[]',         -- a JSON array of models
    error_code      TEXT,
    error_message   TEXT,
    -- What an async job brought; NULL for what it did not name.
    expires_at      INTEGER,
    timeout         REAL,                               -- seconds
    metadata        TEXT,
    webhook         TEXT,
    request         INTEGER,                            -- the number of its idempotency key
    CHECK (not_before = 0 OR state = 'queued'),
    CHECK ((state IN ('done', 'failed')) = (completed_at IS NOT NULL)),
    CHECK ((state = 'failed') = (error_code IS NOT NULL)),
    CHECK ((error_code IS NULL) = (error_message IS NULL))
) STRICT;

-- Each index covers only the rows its question is about, so that the finished ones cost nothing and an answer
-- takes the same few microseconds at any depth.

-- The oldest ready job of a runner, of a model, of all.
CREATE INDEX ready_by_runner ON jobs (runner_model, runner_options, seq) WHERE state = 'queued' AND not_before = 0;
CREATE INDEX ready_by_model ON jobs (runner_model, seq) WHERE state = 'queued' AND not_before = 0;
CREATE INDEX ready ON jobs (seq) WHERE state = 'queued' AND not_before = 0;

-- What waits for its time, earliest first.
CREATE INDEX backoff ON jobs (not_before) WHERE state = 'queued' AND not_before > 0;

-- How deep the queue is, for the counters in memory.
CREATE INDEX depth ON jobs (runner_model, runner_options, model) WHERE state = 'queued';

-- What a start finds without an owner: the jobs at the target, and the waiting ones whose clients are gone.
CREATE INDEX running ON jobs (state) WHERE state IN ('loading', 'working');
CREATE INDEX waiting_clients ON jobs (seq) WHERE state = 'queued' AND sync = 1;

-- Lists, newest first.
CREATE INDEX by_state ON jobs (listed, seq);
CREATE INDEX by_name ON jobs (name, seq);
CREATE INDEX by_name_and_state ON jobs (name, listed, seq);

-- What expires while it waits, soonest first.
CREATE INDEX expiring ON jobs (expires_at) WHERE state = 'queued' AND expires_at IS NOT NULL;

-- What may be pruned, oldest first.
CREATE INDEX ended ON jobs (completed_at) WHERE state IN ('done', 'failed');

-- An async job's request, until the job has ended.
CREATE TABLE bodies (
    seq           INTEGER PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
    content_type  TEXT NOT NULL,
    body          BLOB NOT NULL
) STRICT;

-- What an async job leaves.  `number` is there to read the body in pieces by.
CREATE TABLE artifacts (
    number        INTEGER PRIMARY KEY,
    seq           INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE,
    name          TEXT NOT NULL,
    content_type  TEXT NOT NULL,
    size          INTEGER NOT NULL,
    sha256        TEXT NOT NULL,
    body          BLOB NOT NULL,
    UNIQUE (seq, name)
) STRICT;

-- Each transition of an async job, and what became of the webhook that tells of it.
CREATE TABLE events (
    seq            INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE,
    sequence       INTEGER NOT NULL,  -- 1, 2, … within the job
    previous       TEXT,              -- state
    state          TEXT NOT NULL,
    at             INTEGER NOT NULL,
    attempt        INTEGER NOT NULL,
    failures       INTEGER NOT NULL,
    error_code     TEXT,
    error_message  TEXT,
    host           TEXT,              -- scheme://host:port of the webhook
    delivery       TEXT CHECK (delivery IN ('pending', 'delivered', 'exhausted', 'superseded', 'gone')),
    tries          INTEGER NOT NULL DEFAULT 0,
    next_at        INTEGER,           -- when to try; NULL unless pending and its turn has come
    PRIMARY KEY (seq, sequence),
    CHECK (next_at IS NULL OR delivery = 'pending'),
    CHECK ((host IS NULL) = (delivery IS NULL))
) STRICT, WITHOUT ROWID;

-- What is to be delivered: by host, since a dead one must not hold up the others, and in all.
CREATE INDEX due_by_host ON events (host, next_at) WHERE next_at IS NOT NULL;
CREATE INDEX due ON events (next_at) WHERE next_at IS NOT NULL;

-- For the figures.
CREATE INDEX undelivered ON events (delivery) WHERE delivery IN ('pending', 'exhausted');

-- Each attempt to deliver an event.
CREATE TABLE delivery_tries (
    seq       INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE,
    place     INTEGER NOT NULL,       -- 1, 2, … within the job
    sequence  INTEGER NOT NULL,       -- the event's
    at        INTEGER NOT NULL,
    status    INTEGER,
    error     TEXT,
    PRIMARY KEY (seq, place)
) STRICT, WITHOUT ROWID;

-- Requests that may be repeated, as long as a job of theirs is kept; those whose jobs were deleted, a while longer.
CREATE TABLE idempotency (
    number   INTEGER PRIMARY KEY,
    key      TEXT NOT NULL UNIQUE,
    digest   BLOB NOT NULL,
    ids      TEXT NOT NULL,           -- a JSON array, in the order of the request
    kept     INTEGER NOT NULL,        -- how many of its jobs are left
    gone_at  INTEGER                  -- when the last was deleted
) STRICT;
CREATE INDEX tombstones ON idempotency (gone_at) WHERE gone_at IS NOT NULL;

-- Answers of the target that survive a restart.
CREATE TABLE kept (
    key    TEXT PRIMARY KEY,
    value  BLOB NOT NULL,
    at     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
