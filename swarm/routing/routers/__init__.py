"""The routers that can be compared; each is one answer to `swarm.routing.router.Router`."""
