"""Every SQL statement of the queue, by name.

The partial indexes of `schema/1.sql` are used only where a query repeats their condition literally, which is why
states stand in the text and are not bound.
"""

from __future__ import annotations

COLUMNS = """
    seq, id, sync, endpoint, model, runner_model, runner_options, size, state, attempt, failures, created_at,
    loading_at, working_at, first_byte_at, completed_at, prompt_tokens, output_tokens, error_code, error_message
"""
"""The columns of a `Job`, in the order `moves.job_of` reads them."""

# -- accepting and moving --------------------------------------------------------------------------------------------

INSERT = """
    INSERT INTO jobs (id, sync, endpoint, model, runner_model, runner_options, size, state, created_at)
    VALUES (?, ?, ?, ?, ?, ?, ?, 'queued', ?)
"""
"""A new job, queued and ready."""

MOVE = """
    UPDATE jobs SET
        state = :state, attempt = :attempt, failures = :failures, not_before = :not_before,
        orphaned = coalesce(:orphaned, orphaned), loading_at = :loading_at, working_at = :working_at,
        first_byte_at = :first_byte_at, completed_at = :completed_at, prompt_tokens = :prompt_tokens,
        output_tokens = :output_tokens, error_code = :error_code, error_message = :error_message
    WHERE seq = :seq AND state = :was_state AND attempt = :was_attempt
"""
"""Every transition there is.  State and attempt name one version of the row, so a late writer changes nothing."""

# -- choosing the next job -------------------------------------------------------------------------------------------

RELEASE = "UPDATE jobs SET not_before = 0 WHERE state = 'queued' AND not_before > 0 AND not_before <= ?"
"""Jobs whose backoff has passed become ready."""

OLDEST_OF_RUNNER = f"""
    SELECT {COLUMNS} FROM jobs
    WHERE state = 'queued' AND not_before = 0 AND runner_model = ? AND runner_options = ? ORDER BY seq LIMIT 1
"""  # noqa: S608 - COLUMNS is ours; so in the queries below
"""The first step of the order: the resident runner's oldest ready job."""

OLDEST_OF_MODEL = f"""
    SELECT {COLUMNS} FROM jobs
    WHERE state = 'queued' AND not_before = 0 AND runner_model = ? ORDER BY seq LIMIT 1
"""  # noqa: S608
"""The second step: the resident model's, with whatever options."""

OLDEST = f"SELECT {COLUMNS} FROM jobs WHERE state = 'queued' AND not_before = 0 ORDER BY seq LIMIT 1"  # noqa: S608
"""The third step: the oldest ready job of all."""

OLDEST_OF_EACH_RUNNER = f"""
    WITH RECURSIVE firsts (seq) AS (
        SELECT (
            SELECT seq FROM jobs WHERE state = 'queued' AND not_before = 0
            ORDER BY runner_model, runner_options, seq LIMIT 1
        )
        UNION ALL
        SELECT coalesce(
            (
                SELECT seq FROM jobs WHERE state = 'queued' AND not_before = 0
                    AND runner_model = this.runner_model AND runner_options > this.runner_options
                ORDER BY runner_options, seq LIMIT 1
            ),
            (
                SELECT seq FROM jobs WHERE state = 'queued' AND not_before = 0 AND runner_model > this.runner_model
                ORDER BY runner_model, runner_options, seq LIMIT 1
            )
        )
        FROM firsts JOIN jobs AS this USING (seq)
    )
    SELECT {COLUMNS} FROM firsts JOIN jobs USING (seq)
"""  # noqa: S608
"""Each runner's oldest ready job, skipping from runner to runner in the index: the cost is that of the runners,
not of the jobs behind them.  (Comparing both columns at once, as a row value, would walk every job of the model.)
For choosing while some runners are set aside."""

# -- looking ahead ---------------------------------------------------------------------------------------------------

READY_OF_RUNNER = f"""
    SELECT {COLUMNS} FROM jobs
    WHERE state = 'queued' AND not_before = 0 AND runner_model = ? AND runner_options = ? ORDER BY seq LIMIT ?
"""  # noqa: S608
"""A runner's oldest ready jobs."""

DUE = f"SELECT {COLUMNS} FROM jobs WHERE state = 'queued' AND not_before > 0 AND not_before <= ?"  # noqa: S608
"""Jobs whose backoff has passed and that `RELEASE` has not made ready yet."""

OLDEST_OF_EACH_NAME = """
    WITH RECURSIVE firsts (seq) AS (
        SELECT (
            SELECT seq FROM jobs WHERE state = 'queued' ORDER BY runner_model, runner_options, model, seq LIMIT 1
        )
        UNION ALL
        SELECT coalesce(
            (
                SELECT seq FROM jobs WHERE state = 'queued'
                    AND runner_model = this.runner_model AND runner_options = this.runner_options
                    AND model > this.model
                ORDER BY model, seq LIMIT 1
            ),
            (
                SELECT seq FROM jobs WHERE state = 'queued'
                    AND runner_model = this.runner_model AND runner_options > this.runner_options
                ORDER BY runner_options, model, seq LIMIT 1
            ),
            (
                SELECT seq FROM jobs WHERE state = 'queued' AND runner_model > this.runner_model
                ORDER BY runner_model, runner_options, model, seq LIMIT 1
            )
        )
        FROM firsts JOIN jobs AS this USING (seq)
    )
    SELECT model, created_at FROM firsts JOIN jobs USING (seq)
"""
"""For each name as written, within each runner: when the longest waiting job came, backoff or not.  It skips through
the index as `OLDEST_OF_EACH_RUNNER` does."""

# -- starting --------------------------------------------------------------------------------------------------------

INTERRUPTED = f"SELECT {COLUMNS}, orphaned FROM jobs WHERE state IN ('loading', 'working')"  # noqa: S608
"""Jobs that were at the target when foreman ended."""

CLIENTS_GONE = f"SELECT {COLUMNS} FROM jobs WHERE state = 'queued' AND sync = 1"  # noqa: S608
"""Sync jobs still waiting when foreman ended."""

DEPTH = """
    SELECT runner_model, runner_options, model, count(*) FROM jobs WHERE state = 'queued'
    GROUP BY runner_model, runner_options, model
"""
"""Queued jobs by runner and by model as written, for the counters in memory."""

# -- asking ----------------------------------------------------------------------------------------------------------

BY_ID = f"SELECT {COLUMNS} FROM jobs WHERE id = ?"  # noqa: S608
"""One job by its public id."""

BY_SEQ = f"SELECT {COLUMNS} FROM jobs WHERE seq = ?"  # noqa: S608
"""One job by its key."""

NEXT_DUE = "SELECT min(not_before) FROM jobs WHERE state = 'queued' AND not_before > 0"
"""When the next backoff passes."""

OLDEST_CREATED = """
    SELECT created_at FROM jobs WHERE seq = (
        SELECT min(seq) FROM (
            SELECT min(seq) AS seq FROM jobs WHERE state = 'queued' AND not_before = 0
            UNION ALL
            SELECT min(seq) FROM jobs INDEXED BY backoff WHERE state = 'queued' AND not_before > 0
        )
    )
"""
"""When the longest waiting job came, backoff or not.  (Left to itself SQLite would look for the second minimum by
walking the table; the few jobs in backoff are quickly compared.)"""

# -- forgetting and keeping ------------------------------------------------------------------------------------------

PRUNE = """
    DELETE FROM jobs WHERE seq IN (
        SELECT seq FROM jobs WHERE state IN ('done', 'failed') AND completed_at < ? ORDER BY completed_at LIMIT ?
    )
"""
"""The oldest ended jobs, so many."""

FREE_PAGES = "PRAGMA freelist_count"
"""Pages of the file that hold nothing."""

GIVE_BACK = "PRAGMA incremental_vacuum(1)"
"""One free page leaves the file.  (For any other number Python would still stop after the first.)"""

KEEP = """
    INSERT INTO kept (key, value, at) VALUES (?, ?, ?)
    ON CONFLICT (key) DO UPDATE SET value = excluded.value, at = excluded.at
"""
"""An answer of the target's replaces the one before."""

KEPT = "SELECT value, at FROM kept WHERE key = ?"
"""An answer kept earlier, and when."""

LIFT = "UPDATE jobs SET failures = max(0, failures - ?) WHERE seq = ? AND state = 'queued'"
"""Charges made while the target was wedged, taken back from a job that still waits."""
