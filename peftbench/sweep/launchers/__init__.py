"""What Hydra starts a sweep with: this machine, Slurm, Ray, or a plan."""
