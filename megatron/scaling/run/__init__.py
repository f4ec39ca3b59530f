"""A plan, carried out: here, by torchrun or on Slurm, and gone on with."""
