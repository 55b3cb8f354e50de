"""The post-hoc process: losses of every checkpoint on fixed draws, statistics, selection, and its launch."""
