"""The figures of `/metrics`, all of them.  docs/operations.md lists the same names; a test holds the two together.

There are two kinds.  What happens once and is gone (a job ends, a commit takes its time) is observed when it happens:
`moved` follows the store's committed moves, so no end of a job escapes it, whoever ended the job.  What somebody
keeps already (the queue's depth, the bytes of the target) is read when `/metrics` is asked for.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator, Mapping

import prometheus_client as prometheus
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

import foreman
from foreman.job import TERMINAL, Job, JobState
from foreman.ollama.inventory import Inventory, TargetState
from foreman.ollama.listings import Model
from foreman.ollama.target import Target
from foreman.web.health import Health
from foreman.webhooks.outbox import Outbox
from foreman.work.moves import Move
from foreman.work.residency import Residency
from foreman.work.store import Store
from foreman.work.switchboard import Switchboard

OTHER = "other"
"""The `model` label of every name that the target does not have: callers may write what they like."""

STAGE_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400)
"""Seconds: a warm small model answers in milliseconds, a queue that is drained by model may last for days."""

COMMIT_BUCKETS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)
"""Seconds: a commit without fsync takes a fraction of a millisecond, a disk in trouble seconds."""

# A gauge beside each counter and histogram that tells when it was born: nobody asked.
prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics(Collector):
    """Everything that is counted.

    :ivar registry: foreman's own; a room with figures of its own adds them here.
    """

    def __init__(
        self,
        *,
        store: Store,
        inventory: Inventory,
        residency: Residency,
        target: Target,
        switchboard: Switchboard,
        outbox: Outbox,
        health: Health,
    ) -> None:
        self._store = store
        self._inventory = inventory
        self._residency = residency
        self._target = target
        self._switchboard = switchboard
        self._outbox = outbox
        self._health = health
        registry = self.registry = prometheus.CollectorRegistry()
        info = prometheus.Info("foreman", "The foreman that answers.", registry=registry)
        info.info({"version": foreman.__version__})
        self._ended = prometheus.Counter(
            "foreman_jobs_ended", "Jobs that have ended.", ["state", "model"], registry=registry
        )
        self._prompt_tokens = prometheus.Counter(
            "foreman_prompt_tokens", "Tokens of the prompts of ended jobs.", ["model"], registry=registry
        )
        self._output_tokens = prometheus.Counter(
            "foreman_output_tokens", "Tokens of the answers of ended jobs.", ["model"], registry=registry
        )
        self._timed_tokens = prometheus.Counter(
            "foreman_output_timed_tokens", "Those whose seconds the answers tell.", ["model"], registry=registry
        )
        self._output_seconds = prometheus.Counter(
            "foreman_output_seconds", "Seconds of producing the timed tokens.", ["model"], registry=registry
        )
        self._queue, self._load, self._first_token, self._run = (
            prometheus.Histogram(f"foreman_job_{stage}_seconds", help_, buckets=STAGE_BUCKETS, registry=registry)
            for stage, help_ in (
                ("queue", "From acceptance to the last pick, of jobs that ended at the target."),
                ("load", "From the pick to the request: the load of the runner, next to nothing when it was resident."),
                ("first_token", "From the request to the first byte of the answer."),
                ("run", "From the request to the end."),
            )
        )
        self._commit = prometheus.Histogram(
            "foreman_commit_seconds", "Database commits.", buckets=COMMIT_BUCKETS, registry=registry
        )
        # Linux only: elsewhere it gives nothing.
        prometheus.ProcessCollector(namespace="foreman", registry=registry)
        registry.register(self)
        inventory.on_models.append(self._listed)

    def text(self) -> bytes:
        """The whole page, in the format of `content_type`."""
        return prometheus.generate_latest(self.registry)

    content_type = prometheus.CONTENT_TYPE_LATEST.encode("ascii")

    # -- observed ------------------------------------------------------------------------------------------------

    def moved(self, move: Move) -> None:
        """One job has moved, and that is committed."""
        job = move.job
        if job.state not in TERMINAL:
            return
        model = self._label(job.model)
        self._ended.labels(job.state.value, model).inc()
        self._prompt_tokens.labels(model).inc(job.prompt_tokens or 0)
        self._output_tokens.labels(model).inc(job.output_tokens or 0)
        if job.output_tokens and job.output_ms:
            self._timed_tokens.labels(model).inc(job.output_tokens)
            self._output_seconds.labels(model).inc(job.output_ms / 1000)
        if move.was is JobState.WORKING:
            self._observe_stages(job)

    def _observe_stages(self, job: Job) -> None:
        moments = (job.created_at, job.loading_at, job.working_at)
        for stage, since, until in (
            (self._queue, moments[0], moments[1]),
            (self._load, moments[1], moments[2]),
            (self._first_token, moments[2], job.first_byte_at),
            (self._run, moments[2], job.completed_at),
        ):
            if since is not None and until is not None:
                stage.observe(max(0, until - since) / 1000)  # the wall clock may step back

    def _listed(self, models: Mapping[str, Model]) -> None:
        """Begin each model's counts at 0: Prometheus takes a count that appears for no increase."""
        for name in {OTHER, *(model.name for model in models.values())}:
            for state in TERMINAL:
                self._ended.labels(state.value, name)
            for count in (self._prompt_tokens, self._output_tokens, self._timed_tokens, self._output_seconds):
                count.labels(name)

    def committed(self, seconds: float, _writes: int) -> None:
        """The database has committed a batch of writes."""
        self._commit.observe(seconds)

    def _label(self, name: str) -> str:
        model = self._inventory.find(name)
        return OTHER if model is None else model.name

    # -- read when asked -----------------------------------------------------------------------------------------

    def collect(self) -> Iterator[Metric]:
        """What others keep, as it is now."""
        depth = GaugeMetricFamily("foreman_queue_depth", "Jobs that wait.", labels=["model"])
        tally: Tally[str] = Tally()
        for name, count in self._store.backlog.by_model().items():
            tally[self._label(name)] += count
        for model, count in tally.items():
            depth.add_metric([model], count)
        yield depth

        state = GaugeMetricFamily("foreman_target_state", "1 for the state the target is in.", labels=["state"])
        for one in TargetState:
            state.add_metric([one.value], one is self._inventory.state)
        yield state

        polls = CounterMetricFamily("foreman_polls", "Polls of the target.", labels=["outcome"])
        polls.add_metric(["answered"], self._inventory.polls_answered)
        polls.add_metric(["failed"], self._inventory.polls_failed)
        yield polls

        attempts = CounterMetricFamily("foreman_webhook_attempts", "Attempts to deliver a webhook.", labels=["outcome"])
        for outcome, count in self._outbox.attempts.items():
            attempts.add_metric([outcome], count)
        yield attempts

        webhooks = GaugeMetricFamily("foreman_webhooks", "Webhooks that are not delivered.", labels=["state"])
        for delivery, count in self._health.webhooks.items():
            webhooks.add_metric([delivery.value], count)
        yield webhooks

        for gauge, help_, now in (
            ("foreman_queue_oldest_seconds", "How long the oldest job has waited.", self._health.oldest_s),
            ("foreman_jobs_running", "Jobs that are loading or working.", self._store.backlog.running),
            ("foreman_sync_callers", "Sync calls without a whole answer yet.", len(self._switchboard)),
            ("foreman_paused", "1 while foreman is paused.", int(self._health.pause.active)),
            ("foreman_store_writable", "0 while the database cannot be written.", int(self._store.writable)),
        ):
            yield GaugeMetricFamily(gauge, help_, value=now)
        swaps = self._residency.swaps
        for counter, help_, total in (
            ("foreman_swaps", "Loads of a runner that was not resident.", swaps.paid),
            ("foreman_arrival_swaps", "The same, had the jobs run in the order of acceptance.", swaps.by_arrival),
            ("foreman_target_bytes", "Bytes of answers received from the target.", self._target.bytes_in),
        ):
            yield CounterMetricFamily(counter, help_, value=total)
