-- One row a job, from acceptance until it is pruned.  Times are milliseconds since the epoch, NULL if not yet.
CREATE TABLE jobs (
    seq             INTEGER PRIMARY KEY AUTOINCREMENT,  -- the order of acceptance: clocks step back, this does not
    id              TEXT NOT NULL UNIQUE,
    sync            INTEGER NOT NULL CHECK (sync IN (0, 1)),
    endpoint        TEXT NOT NULL,
    model           TEXT NOT NULL,                      -- as its caller wrote it
    runner_model    TEXT NOT NULL,                      -- what the target really keeps loaded: the model …
    runner_options  TEXT NOT NULL,                      -- … and its load-time options
    size            INTEGER NOT NULL CHECK (size >= 0),
    state           TEXT NOT NULL CHECK (state IN ('queued', 'loading', 'working', 'done', 'failed')),
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
    error_code      TEXT,
    error_message   TEXT,
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

-- What may be pruned, oldest first.
CREATE INDEX ended ON jobs (completed_at) WHERE state IN ('done', 'failed');

-- Answers of the target that survive a restart.
CREATE TABLE kept (
    key    TEXT PRIMARY KEY,
    value  BLOB NOT NULL,
    at     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
