"""Gates as a client sees them: asking until it is decided, and the forms in which a decision is told."""
