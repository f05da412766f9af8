"""What a run keeps on disk: its directory, checkpoints, metrics and recorded trees."""
