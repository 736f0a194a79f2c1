"""Real servers for every test: one of a kind per test process (`aegis.testing.fixtures`)."""

pytest_plugins = ["aegis.testing.fixtures"]
