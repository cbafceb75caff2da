"""Images: sources, views, batches, made scenes."""
