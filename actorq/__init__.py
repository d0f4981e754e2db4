"""actorq."""
