"""Data: from files, buckets and the hub to items."""
