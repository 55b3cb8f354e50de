"""Reports: one run, several side by side, a sweep. Imports no torch; reads run folders and nothing else."""
