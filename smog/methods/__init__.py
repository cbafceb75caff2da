"""The objectives, one file each. A method is a module with ``backbone``, ``forward(views, step)`` -> (loss,
diagnostics), ``after_step(step)`` and ``diagnose()``; all its state is in its state_dict."""

# The version of all code that a run's result depends on: the method's own file, trainer, views, networks, optimisers.
# Raised when the same configuration would give another result.
VERSIONS = {"smog": 1}
