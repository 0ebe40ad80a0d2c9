"""Arguments of several commands: references to versions, values, specs in files, shared options."""
