"""Backbones: loading with exact tags, and the anatomy that methods address."""
