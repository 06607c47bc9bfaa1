"""`make chaos`: foreman as it runs, under load and faults, and a checker that proves that nothing was lost.

`python -m chaos --help` says how to run it; `docs/reliability.md` is what came of it.
"""
