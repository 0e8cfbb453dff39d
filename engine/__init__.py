"""Scheduling, state pool, sampling and the async face of the engine. Imports models and kernels, never server."""
