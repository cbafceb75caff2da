"""What tests do to the jobs that they submit: Python imports this module by its name from a folder on PYTHONPATH.

``launch.setup`` puts the folder there and sets SMOG_TEST_SLEEP=SECONDS (each step of a first start takes so much
longer), SMOG_TEST_CODE=1 (a mistake in the program) or SMOG_TEST_NODE=NAME (that node has a broken device).
"""

import os
import time

if "SLURM_STEP_ID" in os.environ:
    from smog.training import Run

    one_step = Run._one_step

    def disturbed_step(self, batch):
        if "SMOG_TEST_CODE" in os.environ:
            raise KeyError(f"groups of {self.folder.name}")
        if os.environ.get("SMOG_TEST_NODE") == os.environ["SLURMD_NODENAME"]:
            raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
        if "SLURM_RESTART_COUNT" not in os.environ:
            time.sleep(float(os.environ.get("SMOG_TEST_SLEEP", 0)))
        return one_step(self, batch)

    Run._one_step = disturbed_step
