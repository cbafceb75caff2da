"""What mmsegmentation's configuration names and it does not have itself: imported, all of it is registered."""

from transfer.bodies import mmseg as _  # noqa: F401 (first: it lets mmsegmentation be imported without compiled operators)
from transfer.segmentation.body import Body
from transfer.segmentation.head import LinearHead
from transfer.segmentation.loop import Steps
from transfer.segmentation.metric import Confusion
from transfer.segmentation.optim import LayerDecay, Precise

__all__ = ["Body", "Confusion", "LayerDecay", "LinearHead", "Precise", "Steps"]
