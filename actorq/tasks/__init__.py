"""What a task is: its id, its payload, its life cycle as a table. No I/O, no processes."""
