"""The command `foreman`: what an operator or a caller types.

`main` is where all the commands meet; docs/callers.md shows each, and what the exit codes mean.
"""
