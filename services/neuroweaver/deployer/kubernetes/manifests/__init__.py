"""The objects of a deployment, as they are applied. Begin with `manifests`."""
