"""The machine below: memory that processes hold, files that appear whole. Imports nothing of the mesh."""
