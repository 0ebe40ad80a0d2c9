"""What is there: pods, drift, logs, metrics, changes. Begin with `observation`."""
