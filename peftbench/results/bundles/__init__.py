"""Finished runs as one file: what it holds, how it is written and taken in."""
