"""The end of an experiment, on both sides: here and in the Registry. Imports `domain`."""
