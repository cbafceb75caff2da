"""Semantic segmentation from a checkpoint, by mmsegmentation."""
