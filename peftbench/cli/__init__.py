"""The command line: one module a command, exit statuses, and the server that runs jobs."""
