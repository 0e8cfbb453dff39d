"""Fixtures that several test files of this folder share."""

from tests.engine.store.backends import blobs, place, redis_url, reopen, s3_endpoint, s3_url

__all__ = ["blobs", "place", "redis_url", "reopen", "s3_endpoint", "s3_url"]
