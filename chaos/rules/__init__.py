"""The rules: each a function of the facts that gives a line for every one that contradicts the contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from chaos.facts import Facts
from chaos.rules import clients, jobs, processes, webhooks, work

Rule = Callable[[Facts], Iterator[str]]

RULES: tuple[Rule, ...] = (
    processes.drained,
    processes.lives_as_long_as_it_is_let,
    processes.log_is_clean,
    processes.database_is_sound,
    clients.nobody_hangs,
    clients.cuts_have_a_cause,
    clients.answers_are_the_contracts,
    clients.bytes_are_the_targets,
    clients.embeddings_are_the_targets,
    clients.whole_answers_are_rows_that_ended_well,
    jobs.accepted_jobs_end_once,
    jobs.nothing_is_forgotten_early,
    jobs.deleted_jobs_are_gone,
    jobs.one_key_is_one_job,
    jobs.events_are_a_legal_path,
    jobs.no_run_is_hidden,
    work.one_at_a_time,
    work.the_order_of_work_is_kept,
    work.loads_are_those_of_the_order,
    work.cancelled_jobs_do_not_run,
    work.who_left_waiting_does_not_run,
    jobs.answers_are_kept,
    webhooks.deliveries_are_true,
    webhooks.ends_are_told,
    webhooks.told_in_order,
)
"""All of them."""
