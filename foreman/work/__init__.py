"""Which job, when, and running it."""
