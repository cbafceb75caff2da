"""Transfer to other frameworks: detection and segmentation."""
