"""What a job must pass, and who looks after it while it runs. Imports the rooms below."""
