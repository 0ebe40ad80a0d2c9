"""Versions as OCI layouts, out and in. Begin with `oci`."""
