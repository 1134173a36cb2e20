"""Architectures that timm lacks, written from their papers, with the names of their files."""
