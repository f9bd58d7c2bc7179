"""Search for copies, leaks and confounders in folders of tiles, before any training."""
