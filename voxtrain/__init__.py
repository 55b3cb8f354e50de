"""voxtrain: fine-tune VoxCPM 2 on one consumer GPU, and say with evidence which checkpoint to ship."""

__version__ = "0.1.0"
