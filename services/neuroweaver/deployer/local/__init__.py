"""The local backend: deployments as processes of this machine, behind one router. Begin with `backend`;
`front` is that router, and `routes` what the deployer and it tell each other.
"""
