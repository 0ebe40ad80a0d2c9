"""TrainerService and WorkerService: from a request to its answer. Imports the rooms below."""
