"""What a change would do, and whether the cluster could. Begin with `planner`."""
