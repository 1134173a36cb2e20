"""Every test here calls the command line."""

from support.command_line import cli, work  # noqa: F401 - fixtures
