"""The objectives, one file each. A method is a module with ``backbone``, ``forward(views, step)`` -> (loss,
diagnostics), ``after_step(step)`` and ``diagnose()``; all its state is in its state_dict."""
