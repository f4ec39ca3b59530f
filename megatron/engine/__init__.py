"""Engines turn posed batches into updates. One today: `native`, on torch alone."""
