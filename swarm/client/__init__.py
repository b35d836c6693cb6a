"""A user's side of the swarm: the model in place of the one that does not fit."""
