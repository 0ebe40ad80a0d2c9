"""The Deployer: deployments, here or in Kubernetes; rollouts, health, recovery.

Read `domain`, `storage`, `control`, then `local` or `kubernetes`; `routing` is the HTTP front of
both, `model_servers` what a server tells of itself.
"""
