"""The local backend: deployments as processes of this machine, behind one router. Begin with `backend`."""
