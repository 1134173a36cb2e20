"""Compare every way of tuning a pretrained vision backbone under one protocol."""

__version__ = "0.1.0"
