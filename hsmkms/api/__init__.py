"""HTTP: wire names live here and nowhere else."""
