"""Does it still do its job? Agreement, metrics, gates, precisions, and where a result comes from."""
