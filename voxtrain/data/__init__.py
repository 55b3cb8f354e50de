"""From rows to optimizer steps: audio, cached latents, order, draws, packing. `encode` and `tokenize` are given."""
