"""What a step tells: metrics.csv, the progress bar, Weights & Biases."""
