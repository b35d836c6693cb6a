"""A volunteer: cache, engine, service and lifecycle of one server."""
