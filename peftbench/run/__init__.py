"""One run: what makes it, how it is measured, how it ends."""
