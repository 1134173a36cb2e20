"""Sweeps: slots and their devices, the processes that run jobs, the pool that feeds them."""
