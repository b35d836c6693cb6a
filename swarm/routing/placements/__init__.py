"""The placements that can be compared; each is one answer to `swarm.routing.layout.Placement`."""
