"""What was decided, why, and what came of it."""
