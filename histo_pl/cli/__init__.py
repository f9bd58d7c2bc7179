"""Command lines: arguments as typed, errors of one line, sweeps, and objects from a Hydra configuration."""
