"""The promises, one module for each module of the source."""
