"""Blobs on disk or in a bucket, their garbage collection, and models with their files."""
