"""The loop that brings what is there to what is wished, and what it goes by."""
