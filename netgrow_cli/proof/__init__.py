"""Evidence that two networks compute the same function, and that new units can learn."""
