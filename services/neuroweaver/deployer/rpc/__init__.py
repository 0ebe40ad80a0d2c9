"""DeployerService: from a request to its answer. Begin with `server`. Imports the rooms below."""
