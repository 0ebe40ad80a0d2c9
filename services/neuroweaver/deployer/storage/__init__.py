"""What the Deployer keeps, and how it is read and written."""
