"""What the packages people use get from the real daemon: `test_clients` sets the stage, the other modules act on it."""
