"""Architectures: one file each, loaded from public checkpoint layouts. Imports kernels only."""
