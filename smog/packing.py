"""Which runs can share a data pass. Light, so that a planner can ask without torch."""

from __future__ import annotations

from smog.identity import as_dict, digest, run_id
from smog.schema import Config


def pack_key(config: Config) -> str:
    """Return what is equal for runs that can be trained together: images, their order and their views depend on no
    more than the seed, the data, the views and the batch.

    Device and threads are that of the process. A compiled run shares with none: what torch.compile has seen before
    changes the code that it makes.
    """
    shared = [as_dict(part, science_only=True) for part in (config.data, config.views)]
    batch, place = (config.optim.batch, config.optim.accumulate), (config.runtime.device, config.runtime.threads)
    return digest([config.seed, *shared, *batch, *place, run_id(config) if config.runtime.compile else ""])
