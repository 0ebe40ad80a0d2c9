"""The router in front of this machine's deployments, a process of its own: floods do not slow the deployer
down, and requests are answered while that is killed and started again.

`process` is the deployer's side: it starts the program, tells it who answers, and hears what it counted.
`program` is what runs there, and `fleets` what it knows.
"""
