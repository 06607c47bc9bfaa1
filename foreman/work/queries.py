"""Every SQL statement of the queue, by name.

The partial indexes of `schema/1.sql` are used only where a query repeats their condition literally, which is why
states stand in the text and are not bound.
"""

from __future__ import annotations

COLUMNS = """
    seq, id, sync, endpoint, model, runner_model, runner_options, size, state, attempt, failures, created_at,
    loading_at, working_at, first_byte_at, completed_at, prompt_tokens, output_tokens, output_ms, unreachable_ms,
    waited_for, error_code, error_message
"""
"""The columns of a `Job`, in the order `moves.job_of` reads them."""

# -- accepting and moving --------------------------------------------------------------------------------------------

INSERT = """
    INSERT INTO jobs (
        id, sync, endpoint, model, name, runner_model, runner_options, size, state, created_at,
        expires_at, timeout, metadata, webhook, request
    )
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'queued', ?, ?, ?, ?, ?, ?)
"""
"""A new job, queued and ready."""

MOVE = """
    UPDATE jobs SET
        state = :state, attempt = :attempt, failures = :failures, not_before = :not_before,
        orphaned = coalesce(:orphaned, orphaned), loading_at = :loading_at, working_at = :working_at,
        first_byte_at = :first_byte_at, completed_at = :completed_at, prompt_tokens = :prompt_tokens,
        output_tokens = :output_tokens, output_ms = :output_ms, unreachable_ms = :unreachable_ms,
        waited_for = :waited_for, error_code = :error_code, error_message = :error_message
    WHERE seq = :seq AND state = :was_state AND attempt = :was_attempt
"""
"""Every transition there is.  State and attempt name one version of the row, so a late writer changes nothing."""

INSERT_BODY = "INSERT INTO bodies (seq, content_type, body) VALUES (?, ?, ?)"
"""What an async job asks of the target."""

ERASE_BODY = "DELETE FROM bodies WHERE seq = ?"
"""An ended job needs no request."""

SUBMISSION = """
    SELECT body, content_type, metadata, webhook, expires_at, timeout FROM bodies JOIN jobs USING (seq) WHERE seq = ?
"""
"""All that an async job has brought."""

INSERT_ARTIFACT = "INSERT INTO artifacts (seq, name, content_type, size, sha256, body) VALUES (?, ?, ?, ?, ?, ?)"
"""A blob that a job leaves."""

INSERT_FIRST_EVENT = """
    INSERT INTO events (seq, sequence, state, at, attempt, failures, host, delivery, next_at)
    VALUES (?, 1, 'queued', ?, 0, 0, ?, ?, ?)
"""
"""A job's acceptance, whose webhook is due at once."""

INSERT_EVENT = """
    WITH last (sequence, delivery, tries) AS (
        SELECT sequence, delivery, tries FROM events WHERE seq = :seq ORDER BY sequence DESC LIMIT 1
    )
    INSERT INTO events (
        seq, sequence, previous, state, at, attempt, failures, error_code, error_message, host, delivery, next_at
    )
    SELECT
        :seq, coalesce(last.sequence, 0) + 1, :previous, :state, :at, :attempt, :failures, :error_code, :error_message,
        :host, CASE WHEN :host IS NULL THEN NULL WHEN last.delivery = 'gone' THEN 'gone' ELSE 'pending' END,
        CASE
            WHEN :host IS NULL OR last.delivery = 'gone' OR (last.delivery = 'pending' AND last.tries = 0) THEN NULL
            ELSE :at
        END
    FROM (SELECT 1) LEFT JOIN last
"""
"""A later transition.  Its webhook is due now if the one before it was tried, not sent if that was unwanted."""

WEBHOOK = "SELECT webhook FROM jobs WHERE seq = ?"
"""Whom to tell of a job."""

# -- repeated requests -------------------------------------------------------------------------------------------------

KNOWN_KEY = "SELECT digest, ids, gone_at FROM idempotency WHERE key = ?"
"""What came with an idempotency key."""

INSERT_KEY = "INSERT INTO idempotency (key, digest, ids, kept) VALUES (?, ?, ?, ?)"
"""A request that may be repeated."""

LET_GO = "UPDATE idempotency SET kept = kept - ? WHERE number = ?"
"""Some of its jobs are no more."""

BURY = "UPDATE idempotency SET gone_at = ? WHERE number = ? AND kept = 0"
"""The last of its jobs was deleted."""

FORGET_KEY = "DELETE FROM idempotency WHERE number = ? AND kept = 0"
"""The last of its jobs was pruned."""

FORGET_TOMBSTONES = "DELETE FROM idempotency WHERE gone_at < ?"
"""Deleted long ago."""

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

_FIRST_OF_EACH_RUNNER = """
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
"""

OLDEST_OF_EACH_RUNNER = f"{_FIRST_OF_EACH_RUNNER} SELECT {COLUMNS} FROM firsts JOIN jobs USING (seq)"  # noqa: S608
"""Each runner's oldest ready job, skipping from runner to runner in the index: the cost is that of the runners,
not of the jobs behind them.  (Comparing both columns at once, as a row value, would walk every job of the model.)
For choosing while some runners are set aside."""

FIRSTS = f"""
    {_FIRST_OF_EACH_RUNNER}
    SELECT jobs.runner_model, jobs.runner_options, seq FROM firsts JOIN jobs USING (seq) LIMIT ?
"""  # noqa: S608
"""The same for forecasts: less of each, and of some runners only."""

OLDER_OF_RUNNER = """
    SELECT count(*) FROM (
        SELECT 1 FROM jobs
        WHERE state = 'queued' AND not_before = 0 AND runner_model = ? AND runner_options = ? AND seq < ? LIMIT ?
    )
"""
"""How many ready jobs of a runner are older than one, as far as it is worth counting."""

# -- which model it is ------------------------------------------------------------------------------------------------

IDENTIFY = """
    UPDATE jobs SET runner_model = ?
    WHERE seq IN (SELECT seq FROM jobs WHERE state = 'queued' AND runner_model = ? LIMIT ?) RETURNING runner_options
"""
"""Jobs whose model turns out to have a digest, so many."""

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

EXPIRED = f"""
    SELECT {COLUMNS} FROM jobs WHERE state = 'queued' AND expires_at IS NOT NULL AND expires_at <= ?
    ORDER BY expires_at LIMIT ?
"""  # noqa: S608
"""Jobs that have waited for longer than they may."""

NEXT_EXPIRY = "SELECT min(expires_at) FROM jobs WHERE state = 'queued' AND expires_at IS NOT NULL"
"""When the next job expires."""

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

RECORD = f"SELECT metadata, webhook, expires_at, {COLUMNS} FROM jobs WHERE id = ?"  # noqa: S608
"""One job with what it brought."""

SEQ = "SELECT seq FROM jobs WHERE id = ?"
"""A public id's key."""

LIST = f"SELECT {COLUMNS} FROM jobs WHERE seq < ? ORDER BY seq DESC LIMIT ?"  # noqa: S608
LIST_STATE = f"SELECT {COLUMNS} FROM jobs WHERE listed = ? AND seq < ? ORDER BY seq DESC LIMIT ?"  # noqa: S608
LIST_NAME = f"SELECT {COLUMNS} FROM jobs WHERE name = ? AND seq < ? ORDER BY seq DESC LIMIT ?"  # noqa: S608
LIST_NAME_AND_STATE = f"""
    SELECT {COLUMNS} FROM jobs WHERE name = ? AND listed = ? AND seq < ? ORDER BY seq DESC LIMIT ?
"""  # noqa: S608
"""A page of jobs, newest first."""

ARTIFACTS = """
    SELECT name, content_type, size, sha256, CASE WHEN size <= ? THEN body END FROM artifacts WHERE seq = ?
    ORDER BY name
"""
"""What a job has left, the small ones with their bytes."""

ARTIFACT = """
    SELECT number, content_type, size, sha256 FROM artifacts
    WHERE seq = (SELECT seq FROM jobs WHERE id = ?) AND name = ?
"""
"""One of them; its bytes are read by its number."""

EVENT_COLUMNS = """
    sequence, previous, events.state, at, events.attempt, events.failures, events.error_code, events.error_message,
    delivery, tries, next_at
"""
"""The columns of an `Event`, in the order `deliveries.event_of` reads them."""

EVENTS = f"SELECT {EVENT_COLUMNS} FROM events WHERE seq = ? ORDER BY sequence"  # noqa: S608
"""A job's events."""

DELIVERY_TRIES = "SELECT sequence, at, status, error FROM delivery_tries WHERE seq = ? ORDER BY place"
"""The attempts to deliver them."""

DELIVERY_STATES = "SELECT delivery FROM events WHERE seq = ? AND delivery IS NOT NULL"
"""What became of them."""

RECENT = f"""
    SELECT {COLUMNS} FROM jobs WHERE listed = 'done' ORDER BY seq DESC LIMIT ?
"""  # noqa: S608
"""The newest jobs that are done, to learn from."""

# -- delivering --------------------------------------------------------------------------------------------------------

NEXT_HOST = "SELECT host FROM events WHERE next_at IS NOT NULL AND host > ? ORDER BY host LIMIT 1"
"""The next receiver that something is pending for."""

DUE_FOR_HOST = f"""
    SELECT events.seq, jobs.id, webhook, host, model, metadata, {EVENT_COLUMNS}
    FROM events JOIN jobs USING (seq) WHERE next_at IS NOT NULL AND host = ? AND next_at <= ? ORDER BY next_at LIMIT ?
"""  # noqa: S608
"""What is to be sent to it now."""

NEXT_DELIVERY = "SELECT min(next_at) FROM events WHERE next_at IS NOT NULL"
"""When the next delivery is due."""

NOTE_TRY = """
    INSERT INTO delivery_tries (seq, place, sequence, at, status, error)
    SELECT :seq, coalesce(max(place), 0) + 1, :sequence, :at, :status, :error FROM delivery_tries WHERE seq = :seq
"""
"""An attempt."""

MARK_TRIED = """
    UPDATE events SET delivery = :state, tries = tries + 1, next_at = :next_at
    WHERE seq = :seq AND sequence = :sequence AND delivery = 'pending'
"""
"""What an attempt has come to, unless the event was dropped meanwhile."""

ITS_TURN = """
    UPDATE events SET next_at = ? WHERE seq = ? AND sequence = ? AND delivery = 'pending' AND next_at IS NULL
"""
"""The event before it has been tried."""

SUPERSEDE = """
    UPDATE events SET delivery = 'superseded', next_at = NULL WHERE seq = ? AND sequence < ? AND delivery = 'pending'
"""
"""The final event has been delivered: what was pending before it is dropped."""

SUPERSEDE_UNTRIED = """
    UPDATE events SET delivery = 'superseded', next_at = NULL
    WHERE seq = ? AND sequence < ? AND delivery = 'pending' AND tries = 0
"""
"""Its host does not answer: what was not tried yet is dropped in favour of the final event."""

NO_MORE = "UPDATE events SET delivery = 'gone', next_at = NULL WHERE seq = ? AND delivery = 'pending'"
"""The receiver wants no more of this job."""

FINAL_EVENT = "SELECT sequence FROM events WHERE seq = ? AND state IN ('done', 'failed')"
"""A job's final event."""

SEND_AGAIN = """
    UPDATE events SET
        next_at = CASE WHEN delivery = 'pending' AND tries = 0 THEN next_at ELSE ? END, delivery = 'pending', tries = 0
    WHERE seq = (SELECT seq FROM jobs WHERE id = ?) AND state IN ('done', 'failed') AND delivery IS NOT NULL
"""
"""A job's final event, from the first try on; one that has not been tried yet keeps its place in the order."""

UNDELIVERED = """
    SELECT delivery, count(*) FROM events WHERE delivery IN ('pending', 'exhausted') GROUP BY delivery
"""
"""For the figures."""

# -- forgetting and keeping ------------------------------------------------------------------------------------------

PRUNE = """
    DELETE FROM jobs WHERE seq IN (
        SELECT seq FROM jobs WHERE state IN ('done', 'failed') AND completed_at < ?
            AND NOT EXISTS (SELECT 1 FROM events WHERE events.seq = jobs.seq AND delivery = 'pending')
        ORDER BY completed_at LIMIT ?
    )
    RETURNING request
"""
"""The oldest ended jobs, so many, but none of which somebody is still to be told; all that is theirs goes with them."""

DELETE = "DELETE FROM jobs WHERE seq = ? RETURNING request"
"""One job, with all that is its own."""

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

KEPT_OF_MODELS = "SELECT key FROM kept WHERE key GLOB '/api/show *' OR key GLOB '/v1/models/*'"
"""The keys of the answers about one model each."""

FORGET_KEPT = "DELETE FROM kept WHERE key = ?"
"""An answer of no use any more."""

LIFT = "UPDATE jobs SET failures = max(0, failures - ?) WHERE seq = ? AND state = 'queued'"
"""Charges made while the target was wedged, taken back from a job that still waits."""

# -- when the clock is set back ----------------------------------------------------------------------------------------

NEWEST = "SELECT created_at FROM jobs ORDER BY seq DESC LIMIT 1"
"""When the newest job was accepted."""

HASTEN_JOBS = "UPDATE jobs SET not_before = max(1, not_before - ?) WHERE state = 'queued' AND not_before > 0"
"""Backoffs end so many milliseconds sooner."""

HASTEN_EXPIRY = "UPDATE jobs SET expires_at = expires_at - ? WHERE state = 'queued' AND expires_at IS NOT NULL"
"""What waits expires sooner."""

HASTEN_DELIVERIES = "UPDATE events SET next_at = next_at - ? WHERE next_at IS NOT NULL"
"""Deliveries are tried sooner."""
