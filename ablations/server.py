"""All code that a job may need, imported once by the server of launch=local: what is edited later changes no job."""
# ruff: noqa: F401, I001

import contextlib

import __main__
import ablations.launch
import smog.cost
import smog.loggers
import smog.pretrained
import smog.tasks.knn
import smog.tasks.linear
import smog.tasks.result
import smog.training
from pathlib import Path

with contextlib.suppress(ImportError):  # without the extra packages of [transfer], grids have no task that needs them
    import transfer.curves
    import transfer.detection
    import transfer.engines.torchvision
    import transfer.made
    import transfer.sheet
    import transfer.voc

with contextlib.suppress(ImportError):
    import transfer.segmentation.sheet
    import transfer.segmentation.training

from smog.environment import provenance

provenance()  # of this moment, kept for all children
__main__.__file__ = str(Path(__file__).with_name("run.py"))  # so that no child reads it again as its main module
