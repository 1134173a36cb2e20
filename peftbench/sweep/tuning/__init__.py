"""Searches over hyper-parameters: cells, proposals, pruning."""
