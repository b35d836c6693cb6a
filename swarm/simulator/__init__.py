"""A swarm on a virtual clock: the production's routers, placements and queues, without machines."""
