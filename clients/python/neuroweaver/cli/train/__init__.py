"""`neuroweaver train …`. Begin with `commands`."""
