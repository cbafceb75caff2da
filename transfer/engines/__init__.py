"""Detectors of other frameworks, each imported only when it is chosen."""
