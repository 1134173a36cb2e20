"""What Hydra starts a sweep with: this machine, Slurm or Ray."""
