"""The version of peftbench, which nothing needs to import the package for."""

__version__ = "0.1.0"
