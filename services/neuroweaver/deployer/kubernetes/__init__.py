"""The cluster backend: deployments as objects of Kubernetes, over server-side apply."""
