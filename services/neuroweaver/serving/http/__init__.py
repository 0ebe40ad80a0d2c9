"""The HTTP side: routes, streams, administration, metrics. Begin with `app`."""
