"""Many runs: grids, plans, launches."""
