"""States on disk, in Redis or in an object store: records and contents, in tiers."""
