"""A peer-to-peer volunteer swarm for large language models."""
