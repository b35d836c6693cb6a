"""Which servers a session goes over, and which blocks a server takes: pure functions."""
