"""Data parallel training: a process for each device, with the whole model and a share of every step's rows."""
