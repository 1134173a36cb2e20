"""Weights from files of any project, read as data and fitted to a model."""
