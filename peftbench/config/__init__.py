"""The configuration: its schema, its choices, and how they become a run."""
