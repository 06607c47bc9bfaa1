"""foreman's client: a job of the asynchronous face, as pleasant as calling a function."""
