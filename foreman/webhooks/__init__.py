"""Telling others of a job's states: what is sent, where it may go, how it is signed, when it is tried again."""
