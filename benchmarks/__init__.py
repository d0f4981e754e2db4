"""What actorq costs, measured."""
